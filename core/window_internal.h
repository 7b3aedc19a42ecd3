/*
 * The window from inside: for its sources and the tests.
 *
 *   window.c    made, entered, failed, closed             percent.c   percentages, sampling, statistics
 *   paging.c    pages come: faults                        evict.c     pages go: standby, encryption, new keys
 *   handler.c   the threads that answer faults            transfer.c  what this process itself writes and reads
 *   open.c      zones without encryption, and wiping      pin.c       pages kept for devices, pages given back
 *   memory.c    address space                             place.c     frames that were chosen
 *
 * Locks, in this order: life, change, a lane, one area, the failure; the roster by itself. An area's lock is not held while
 * pages are moved or ciphered; they are then `coming` or `leaving` (zone.h), which is a lock on the page.
 */
#ifndef VAMBRACE_WINDOW_INTERNAL_H
#define VAMBRACE_WINDOW_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "window.h"

/* A zone with its lock, its key and its counts. */
struct vb_area {
	pthread_mutex_t lock;    /* guards all below, and the zone's part of the page table */
	pthread_cond_t settled;  /* pages have stopped being on their way, or a copy has ended */
	struct vb_zone zone;
	unsigned percent;        /* what the last complete change set */
	bool open;
	uint32_t copies;         /* calls that copy to or from it while it is open */
	uint32_t ciphering;      /* batches under way */
	struct vb_secret secret;
	uint32_t pin_budget;
	struct vb_stats counts;  /* of it, only what counts up */
	struct vb_sample sample;
	uint64_t sample_began;   /* as vb_now_ns */
	uint64_t sample_took;    /* ns, once it has ended */
	pthread_t opener;
	bool opener_runs;        /* guarded by window.change */
	atomic_bool opener_stop;
};

/* Ciphers for one thread at a time. */
struct vb_lane {
	pthread_mutex_t use;
	struct vb_cipher *ciphers[VB_MAXIMUM_ZONES];
	struct vb_job jobs[VB_RUN];
};

struct vb_handler {
	struct vb_window *window;
	struct vb_lane lane;
	pthread_t thread;
	int cpu;              /* -1: any */
	atomic_bool gone;     /* it has ended */
	bool enlisted;        /* waits for faults; guarded by window.roster */
	atomic_bool dismissed;
	pthread_cond_t call;
	atomic_uint demand;   /* faults of its CPU that others answered, lately */
	_Atomic uint64_t seen; /* when its CPU had a fault last, as window.answered */
};

struct vb_window {
	pthread_rwlock_t life;  /* shared: a call is under way; exclusive: closing */
	pthread_mutex_t change; /* one change of percentages at a time */
	atomic_bool closing;

	uint8_t *guest;
	uint8_t *side;
	size_t bytes;
	bool placed;
	atomic_bool placing;    /* until each page has its frame */
	size_t placed_pages;    /* that have one; this and the next guarded by `change` */
	struct vb_draw *draws;  /* memory that was drawn, the last first */
	struct vb_page *pages;
	struct vb_area areas[VB_MAXIMUM_ZONES];
	size_t zone_count;
	struct vb_lane calls; /* of all threads that are no handlers */

	int uffd;
	int failure_fd;
	int grace_ms;
	struct vb_handler *handlers;
	size_t handler_count;
	pthread_mutex_t roster;
	pthread_cond_t end;        /* closing */
	bool grace_runs;           /* a handler waits for the end of the grace */
	_Atomic uint64_t answered; /* faults */

	pthread_mutex_t failing;
	struct vb_failure failure;
	atomic_bool failed;
};

/* Of a clock that only goes on. */
static inline uint64_t vb_now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static inline size_t vb_offset(uint32_t page)
{
	return (size_t)page * VB_PAGE_SIZE_BYTES;
}

/* memory.c */

/* Aligned as huge pages are; never dumped, inherited, merged, nor in huge pages (but see vb_open_zones). */
int vb_map_memory(size_t bytes, uint8_t **out);
/* Divides what vb_map_memory gave, before it is used, so that pages of different parts are moved at the same time. */
int vb_stripe_memory(uint8_t *memory, size_t bytes);
int vb_keep_from_swap(struct vb_window *window);

/* window.c */

/* Begins a call: from VB_OK until vb_leave the window is not taken down. */
int vb_enter(struct vb_window *window);
void vb_leave(struct vb_window *window);
struct vb_area *vb_area_of(struct vb_window *window, uint32_t page);
/* Notes the first failure and signals it. `page` is of the window. Gives back `status`. */
int vb_fail(struct vb_window *window, int status, uint32_t page);
/* Tells those who wait for pages of this area to look again; with its lock held. */
void vb_settled(struct vb_area *area);
/* Waits for pages of this area to stop being on their way; with its lock held. */
void vb_await(struct vb_area *area);

/*
 * paging.c and evict.c: a status that is not VB_OK, VB_PINNED or VB_FAILED has failed the window. The lane is the
 * caller's alone. Where it is said that a lock is held, it may be let go and taken again meanwhile.
 */

/*
 * Answers a fault at `page` (of the window), which was read at `start`: it becomes plaintext in guest memory, perhaps with
 * pages behind it. Then evicts ahead of need.
 */
int vb_answer(struct vb_window *window, struct vb_lane *lane, uint32_t page, uint64_t start);
/* The same without a fault, and it stays there until vb_let_go; also where the zone is open. */
int vb_hold(struct vb_window *window, struct vb_lane *lane, uint32_t page);
void vb_let_go(struct vb_window *window, uint32_t page);
/* Whole absent pages from `page` on, in its zone, at most `most`, with these contents; *count says how many. */
int vb_page_fill(struct vb_window *window, struct vb_lane *lane, uint32_t page, uint32_t most, const void *data,
		 uint32_t *count);

/* With the area's lock held: evicts until `room` more pages may be plaintext, and counts these. VB_PINNED: not possible. */
int vb_make_room(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, uint32_t room);
/* After a fault, with the area's lock held: evicts ahead of need. */
int vb_tend(struct vb_window *window, struct vb_lane *lane, struct vb_area *area);
/* With the area's lock held: a page in guest memory goes to standby, whatever its turn. */
int vb_set_aside(struct vb_window *window, struct vb_area *area, uint32_t page);
/* With the area's lock held: the lane's cipher for it, under the present key. */
int vb_cipher_for(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, struct vb_cipher **out);
void vb_jobs_of(struct vb_window *window, const struct vb_area *area, uint32_t page, uint32_t count,
		struct vb_job *jobs);

/* open.c */

/* Lets the kernel map open zones as it likes, and sends the faults of all others to the handlers. */
int vb_open_zones(struct vb_window *window);
/* Pages of an open zone that are there; with its lock held. */
uint32_t vb_open_count(struct vb_window *window, const struct vb_area *area);
/* Ends that it is open, with its lock held: from here on its pages are counted and its faults come to the handlers. */
int vb_watch(struct vb_window *window, struct vb_area *area);
/* Decrypts all of a zone in the background, then opens it; and stops that. With window.change held. */
int vb_opener_start(struct vb_window *window, struct vb_area *area);
void vb_opener_stop(struct vb_area *area);
/* Overwrites what is there of `count` pages, without touching one that is not. */
void vb_erase_resident(uint8_t *start, uint32_t count);
/* Overwrites all plaintext and destroys the keys. Nobody else uses the window. */
void vb_wipe(struct vb_window *window);

/* place.c */

/* Gives back what was drawn and not kept. */
void vb_draws_free(struct vb_window *window);

/* handler.c */
int vb_lane_init(struct vb_lane *lane);
/* Cleanses the keys. */
void vb_lane_clear(struct vb_lane *lane);
int vb_handlers_start(struct vb_window *window, const int *cpus, size_t count);
void vb_handlers_stop(struct vb_window *window);

#endif
