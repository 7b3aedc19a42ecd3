/*
 * One zone's bookkeeping: where each of its pages is, how much plaintext it may have and has, which page goes next,
 * and whether faults come one after the other. No memory of the guest, no system call, no lock: paging.c, evict.c and pin.c do that.
 *
 *              fault                        demoted              expelled
 *   absent ────────────► fresh ─────┬──────────────► standby ──────────────► encrypted
 *                          ▲        │                   │                        │
 *                          │  main ─┘       rescued     │         fault          │
 *                          │   ▲ ◄──────────────────────┘                        │
 *                          │   └── soon after it left ◄──────────────────────────┤
 *                          └────── long after ◄──────────────────────────────────┘
 *
 * Fresh and main pages are in guest memory, and nothing tells whether the guest still uses them. So each of these two
 * queues gives its oldest pages to standby: moved aside, still plaintext, given back for the price of a move. What
 * comes back from there, or soon after it was encrypted, was worth keeping. What is soon depends on the length of
 * fresh: a large main is hard to enter. And what main lost does not come back to it while nearly all of that comes back:
 * then it is a loop larger than the window, of which a part that stays is better than one that changes.
 *
 * Which queue gives the next page follows from what comes back. Each page of fresh that comes back says that fresh
 * should be longer, each one of main that it should be shorter (as in ARC, Megiddo & Modha, FAST 2003, but by faults).
 * That takes time, so a main whose pages hardly ever come back any more gives at once; and it gives one now and then
 * in any case, so that it stays known how many come back. So a scan passes through fresh and leaves main alone, and a
 * new phase of a program drains a main that it does not use any more.
 *
 * A page of main that has come back from standby several times in a row will do so again: it is spared the next rounds
 * of its queue: one, three, seven, then fifteen. These are the pages in steady use, which would otherwise cost most of
 * the moves; and the others pass through standby sooner, so that more is known of them. Sparing stops when pages that
 * were spared so often do not come back.
 *
 * Pages are numbered within the zone. A page is `leaving` or `coming` while somebody works on it without the zone's
 * lock: it is in no queue, and nobody else touches it.
 */
#ifndef VAMBRACE_ZONE_H
#define VAMBRACE_ZONE_H

#include <stdbool.h>
#include <stdint.h>

/* No zone's window is smaller (or all pages of a zone that has fewer): a vCPU needs some pages at once. */
#define VB_MINIMUM_WINDOW 64
/* Most pages that are moved, mapped, encrypted or decrypted in one step. */
#define VB_RUN 64
#define VB_STREAMS 4
#define VB_ZONE_TAG_BYTES 16
/* Returns of a page in a row are counted up to here. */
#define VB_RETURNS 4

enum vb_state {
	VB_ABSENT,    /* never touched, or given back */
	VB_ENCRYPTED, /* aside */
	VB_COMING,    /* on its way into guest memory: who waits for it is woken when it is there */
	VB_LEAVING,   /* on its way out, or held by a call: who wants it waits */
	VB_STANDBY,   /* plaintext, aside */
	VB_FRESH,     /* plaintext, in guest memory; so are the two below */
	VB_MAIN,
	VB_FIXED,    /* a device reaches it: it stays */
};

struct vb_page {
	uint64_t version : 48; /* of the last encryption under the zone's present key; 0: none */
	uint64_t state : 4;    /* enum vb_state */
	uint64_t arm : 1;      /* the queue that gave it to standby last: main (1) or fresh (0) */
	uint64_t held : 2;     /* coming or held: where it goes to: 0 fresh, 1 main, 2 pinned */
	uint64_t sealed : 1;   /* what is aside is ciphertext */
	uint64_t given : 1;    /* it was its queue's choice to give it up: that it comes back says something */
	uint64_t pins : 7;     /* how often it is pinned */
	uint32_t next;         /* in its queue; encrypted: the number of its departure */
	uint32_t previous;
	union {
		uint8_t tag[VB_ZONE_TAG_BYTES]; /* sealed */
		struct {                        /* plaintext */
			uint8_t returns; /* from standby, in a row; at most VB_RETURNS */
			uint8_t spared;  /* rounds of main that it need not go to standby */
		};
	};
};

struct vb_queue {
	uint32_t head; /* the oldest */
	uint32_t tail;
	uint32_t count;
};

/* A place where faults have come one after the other: the page expected next, and the last run's length. */
struct vb_stream {
	uint32_t next;
	uint32_t run;
};

struct vb_zone {
	uint32_t first; /* its first page in the window */
	uint32_t count; /* pages */
	struct vb_page *pages;

	uint32_t limit;     /* plaintext pages allowed at this instant */
	uint32_t goal;      /* what room is made for: less than the limit while a rise is under way */
	uint32_t plaintext; /* pages that are, or have room to become, plaintext */
	uint32_t plaintext_max; /* since the percentage was last changed */
	uint32_t pinned;

	struct vb_queue fresh;
	struct vb_queue main;
	struct vb_queue standby;
	uint32_t departures;  /* pages expelled so far; wraps */
	uint32_t turn;        /* demotions since main gave one */
	uint32_t kept;        /* demotions in a row that proved impossible */
	uint32_t wanted;      /* how long fresh should be */
	/* Of fresh and of main, lately: */
	uint32_t demoted[2];  /* pages given up */
	uint32_t returned[2]; /* of these, how many came back from standby */
	uint32_t departed[2]; /* pages encrypted */
	uint32_t missed[2];   /* of these, how many came back before half a window had left */
	/* Pages of main, lately, by how often each had come back in a row: */
	uint32_t tried[VB_RETURNS + 1]; /* given up once more */
	uint32_t again[VB_RETURNS + 1]; /* of these, how many came back again */

	struct vb_stream streams[VB_STREAMS];
	unsigned oldest; /* stream to be replaced next */
};

/* window(zone): max(floor((100 − percent) / 100 × pages), VB_MINIMUM_WINDOW), but no more than all pages. */
uint32_t vb_zone_window(uint32_t pages, unsigned percent);

/* `pages` has `count` zeroed entries and stays the caller's. */
void vb_zone_init(struct vb_zone *zone, uint32_t first, uint32_t count, uint32_t limit, struct vb_page *pages);

/* No page is plaintext or encrypted any more; versions and pins stay. */
void vb_zone_clear(struct vb_zone *zone);

/* Plaintext pages that there is room for from now on, and that are gone (encrypted, or dropped). */
void vb_zone_gain(struct vb_zone *zone, uint32_t pages);
void vb_zone_lose(struct vb_zone *zone, uint32_t pages);

/* How many pages are worth bringing in for a fault at `page`: 1, and more where access is sequential. */
uint32_t vb_zone_expect(struct vb_zone *zone, uint32_t page, struct vb_stream **stream);

/* --- in: absent, encrypted or standby → coming → fresh or main ---------------------------------------------- */

void vb_zone_call(struct vb_zone *zone, uint32_t page);
/* It is in guest memory now. */
void vb_zone_admit(struct vb_zone *zone, uint32_t page);

/* --- out: fresh or main → leaving → standby → leaving → encrypted ------------------------------------------- */

/* How many pages standby should have. */
uint32_t vb_zone_standby_target(const struct vb_zone *zone);
/* How many pages are made free in one step, once none is: room that the next faults find, and a loss to the window. */
uint32_t vb_zone_spare(const struct vb_zone *zone);
/* Takes the next page to give up and the neighbours queued behind it, at most `most`: leaving. Gives their number. */
uint32_t vb_zone_demote(struct vb_zone *zone, uint32_t most, uint32_t *page);
/* It is aside now. */
void vb_zone_park(struct vb_zone *zone, uint32_t page);
/* It could not be moved: somebody pins it. */
void vb_zone_keep(struct vb_zone *zone, uint32_t page);
/* Takes the oldest of standby, at most `most`: leaving. Gives their number. */
uint32_t vb_zone_expel(struct vb_zone *zone, uint32_t most, uint32_t *pages);
/* It is encrypted now. */
void vb_zone_depart(struct vb_zone *zone, uint32_t page);
/* It is no more: a page that is leaving, or coming. */
void vb_zone_forget(struct vb_zone *zone, uint32_t page);

/* --- stays: fresh, main or pinned → leaving → the same; or, set aside, to standby ----------------------------- */

void vb_zone_hold(struct vb_zone *zone, uint32_t page);
void vb_zone_release(struct vb_zone *zone, uint32_t page);
/* Fresh, main or pinned → pinned, and, as often, back to main. */
void vb_zone_pin(struct vb_zone *zone, uint32_t page);
void vb_zone_unpin(struct vb_zone *zone, uint32_t page);
#define VB_MOST_PINS 127

/* Plaintext pages that somebody is working on. */
uint32_t vb_zone_busy(const struct vb_zone *zone);

#endif
