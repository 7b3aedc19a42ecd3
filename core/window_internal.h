/* The window from inside: for window.c, transfer.c, paging.c, handler.c and the tests. */
#ifndef VAMBRACE_WINDOW_INTERNAL_H
#define VAMBRACE_WINDOW_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "window.h"

enum vb_state { VB_ABSENT, VB_PLAINTEXT, VB_ENCRYPTED };

struct vb_page {
	uint64_t version : 56; /* of the last encryption; 0: never encrypted */
	uint64_t state : 8;    /* enum vb_state */
	uint8_t tag[VB_TAG_BYTES];
};

/* A lock that is taken in the order of asking: a long change of percentage must not starve the handler. */
struct vb_turnstile {
	pthread_mutex_t mutex;
	pthread_cond_t turn;
	uint64_t next;
	uint64_t serving;
};

struct vb_window {
	struct vb_turnstile lock; /* guards all below that changes, and the cipher contexts */
	pthread_rwlock_t life;    /* shared: a call is under way; exclusive: closing */
	pthread_mutex_t change;   /* one change of percentage at a time */
	atomic_bool closing;

	uint8_t *guest;
	uint8_t *side;
	size_t bytes;
	struct vb_page *pages;
	uint32_t *queues;
	struct vb_zone zones[VB_MAXIMUM_ZONES];
	size_t zone_count;

	int uffd;
	int wake_fd;    /* tells the handler to stop */
	int failure_fd;
	int grace_ms;
	pthread_t handler;
	bool handler_runs;
	struct vb_failure failure;
};

/* window.c */

/* Begins a call: from VB_OK until vb_leave the window is not taken down. */
int vb_enter(struct vb_window *window);
void vb_leave(struct vb_window *window);
void vb_lock(struct vb_window *window);
void vb_unlock(struct vb_window *window);

/* paging.c; all with the lock held. A status that is not VB_OK or VB_PINNED has failed the window. */

/* Evicts until `room` more pages may be plaintext. VB_PINNED: not possible now. */
int vb_make_room(struct vb_window *window, struct vb_zone *zone, uint32_t room);
/* Makes `page` (of the window) plaintext in guest memory, perhaps with pages behind it. */
int vb_page_in(struct vb_window *window, uint32_t page);
/* The same for `count` absent pages of one zone from `page` on, with these contents. */
int vb_page_fill(struct vb_window *window, uint32_t page, uint32_t count, const void *data);
struct vb_zone *vb_zone_of(struct vb_window *window, uint32_t page);
/* Absent pages from `page` on, in its zone, at most `most`. */
uint32_t vb_absent_run(struct vb_window *window, uint32_t page, uint32_t most);
/* Notes the first failure and signals it. `page` is of the window. Gives back `status`. */
int vb_fail(struct vb_window *window, int status, uint32_t page);
/* Pages of an open zone that are there. */
uint32_t vb_open_pages(struct vb_window *window, const struct vb_zone *zone);
/* Ends that `zone` is open: from here on its pages are counted and its faults come to the handler. */
int vb_watch(struct vb_window *window, struct vb_zone *zone);
/* Overwrites all plaintext and destroys the keys. */
void vb_wipe(struct vb_window *window);

/* handler.c */
int vb_handler_start(struct vb_window *window, int cpu);
void vb_handler_stop(struct vb_window *window);

#endif
