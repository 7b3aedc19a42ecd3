#include "erase.h"

#include <openssl/crypto.h>
#include <stdint.h>

void vb_flush(const void *memory, size_t bytes)
{
#ifdef __aarch64__
	uintptr_t line, at, end = (uintptr_t)memory + bytes;
	uint64_t type;

	/* CTR_EL0.DminLine: the smallest line of all data caches, as log2 of words. */
	__asm__ volatile("mrs %0, ctr_el0" : "=r"(type));
	line = (uintptr_t)4 << (type >> 16 & 15);
	for (at = (uintptr_t)memory & ~(line - 1); at < end; at += line)
		__asm__ volatile("dc civac, %0" : : "r"(at) : "memory");
	__asm__ volatile("dsb sy" : : : "memory");
#else
	(void)memory;
	(void)bytes;
#endif
}

void vb_erase(void *memory, size_t bytes)
{
	OPENSSL_cleanse(memory, bytes);
	vb_flush(memory, bytes);
}
