/*
 * How soon a zone's pages are touched again: what the adviser needs.
 *
 * One page of so many is sampled (SHARDS: Waldspurger et al., FAST 2015, section 3). The VB_SAMPLE_STAY sampled pages that
 * were touched last stay in the guest: an instruction may need several pages at once. Those before them are set aside, on
 * standby, so that their next touch is a fault again, and a cheap one. The number of other sampled pages that were touched
 * between two touches of a page, times the sampling, estimates how many different pages were: with a window of fewer, the
 * second touch would have been a miss (under LRU). What comes back sooner than VB_SAMPLE_STAY is not seen.
 *
 * No memory of the guest, no system call, no lock, as in zone.h.
 */
#ifndef VAMBRACE_SAMPLE_H
#define VAMBRACE_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

/* Most pages of a zone that are sampled; in small zones one of 2^VB_SAMPLE_SHIFT. */
#define VB_SAMPLED 1024
#define VB_SAMPLE_SHIFT 4
#define VB_SAMPLE_STAY 16
#define VB_REUSE 101

struct vb_sample {
	bool on;
	unsigned shift; /* one page of 2^shift is sampled */
	uint32_t pages; /* of the zone */
	uint32_t count;
	uint32_t recent[VB_SAMPLED]; /* sampled pages, the one touched last first */
	uint64_t touches;            /* of sampled pages */
	uint64_t reuse[VB_REUSE];    /* of them, by the distance to the touch before, in percent of the zone */
};

void vb_sample_start(struct vb_sample *sample, uint32_t pages);
bool vb_sampled(const struct vb_sample *sample, uint32_t page);
/* A sampled page was touched. True: *aside is the one to be set aside for it. */
bool vb_sample_note(struct vb_sample *sample, uint32_t page, uint32_t *aside);

#endif
