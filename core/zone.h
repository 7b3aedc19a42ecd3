/*
 * One zone's bookkeeping: how much plaintext it may have and has, in which order pages are evicted, and
 * whether faults come one after the other. No memory of the guest, no system call: the window does that.
 */
#ifndef VAMBRACE_ZONE_H
#define VAMBRACE_ZONE_H

#include <stdbool.h>
#include <stdint.h>

#include "cipher.h"

/* No zone's window is smaller (or all pages of a zone that has fewer): a vCPU needs some pages at once. */
#define VB_MINIMUM_WINDOW 64
/* Most pages that one system call moves or maps; of zeros, as long as there is room, more. */
#define VB_RUN 16
#define VB_ZERO_RUN 64
#define VB_STREAMS 4

/* A place where faults have come one after the other: the page expected next, and the last run's length. */
struct vb_stream {
	uint32_t next;
	uint32_t run;
};

struct vb_zone {
	uint32_t first;   /* its first page in the window */
	uint32_t pages;
	unsigned percent; /* encrypted at least; what the last complete change set */
	uint32_t limit;   /* plaintext pages allowed at this instant */
	uint32_t plaintext;
	uint32_t plaintext_max; /* since the percentage was last changed */
	bool open; /* 0 percent from the start: the kernel maps what is touched, nothing below is counted */

	uint32_t *queue;  /* plaintext pages in the order of their mapping: a ring of `pages` places */
	uint32_t head;
	uint32_t count;

	struct vb_stream streams[VB_STREAMS];
	unsigned oldest;  /* stream to be replaced next */

	struct vb_cipher *cipher;

	uint64_t faults;  /* pages or runs brought in, zero_faults among them */
	uint64_t zero_faults;
	uint64_t evictions; /* pages */
	uint64_t bytes_encrypted;
	uint64_t bytes_decrypted;
	uint64_t busy;    /* evictions that found their page pinned */
};

/* window(zone): max(floor((100 − percent) / 100 × pages), VB_MINIMUM_WINDOW), but no more than all pages. */
uint32_t vb_zone_window(uint32_t pages, unsigned percent);

/* `queue` has `pages` places and stays the caller's. */
void vb_zone_init(struct vb_zone *zone, uint32_t first, uint32_t pages, unsigned percent, uint32_t *queue);

/* Plaintext pages that come into being, and that are gone (encrypted, or dropped). */
void vb_zone_gain(struct vb_zone *zone, uint32_t pages);
void vb_zone_lose(struct vb_zone *zone, uint32_t pages);

void vb_zone_push(struct vb_zone *zone, uint32_t page, uint32_t count);
/* The length of the run of neighbours at the head of the queue, at most `most`; its first page in *page. */
uint32_t vb_zone_peek(const struct vb_zone *zone, uint32_t most, uint32_t *page);
void vb_zone_drop(struct vb_zone *zone, uint32_t count);
/* Sends the page at the head to the end. */
void vb_zone_rotate(struct vb_zone *zone);

/* How many pages are worth bringing in for a fault at `page`: 1, and more where access is sequential. */
uint32_t vb_zone_expect(struct vb_zone *zone, uint32_t page, struct vb_stream **stream);

#endif
