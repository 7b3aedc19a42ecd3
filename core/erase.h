/*
 * Memory and its caches. What was plaintext must be gone from DRAM itself, not only from the program's view of it: a
 * page that was encrypted or erased may still lie in DRAM as it was, with the new contents in a cache.
 */
#ifndef VAMBRACE_ERASE_H
#define VAMBRACE_ERASE_H

#include <stddef.h>

/*
 * Writes the caches' lines of this memory to DRAM and returns when that is done (Arm ARM D7.5.9: DC CIVAC, which
 * Linux allows at EL0). On other architectures, where only tests run, it does nothing.
 */
void vb_flush(const void *memory, size_t bytes);
/* Asks for memory that will be needed in a moment, and waits for nothing. */
static inline void vb_prefetch(const void *memory, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += 64)
		__builtin_prefetch((const char *)memory + at, 1);
}

/* Overwrites memory with zeros, down to DRAM. */
void vb_erase(void *memory, size_t bytes);

#endif
