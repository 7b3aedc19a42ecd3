/*
 * How long it takes to read lines of a page after others were read: whether these evict it from the caches, for
 * vambrace/partition/conflict.py. Nothing of it belongs to the window.
 */
#ifndef VAMBRACE_TIMING_H
#define VAMBRACE_TIMING_H

#include <stddef.h>
#include <stdint.h>

/* Lines of each page that are read, each in a set of its own: together they take long enough for a coarse clock. */
#define VB_TIMED_LINES 8

/* Pages are numbered from `memory` on, which is zeros. */
struct vb_walk {
	const uint8_t *memory;
	uint32_t target;
	const uint32_t *pages; /* read in this order after the target, so often */
	size_t count;
	unsigned rounds;
	uint64_t wait_ns;      /* and then so long is waited */
};

/*
 * Nanoseconds of reading the target's lines, one after the other, at the end; the clock's own time is among them. UINT64_MAX:
 * the target is not zeros.
 */
uint64_t vb_time_walk(const struct vb_walk *walk);

#endif
