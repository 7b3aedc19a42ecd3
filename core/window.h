/*
 * The encrypted window: guest memory of which, per zone, only a bounded number of pages is plaintext.
 *
 *   guest   ┌────┬────┬────┬────┬────┐   what KVM, vhost and the VMM see; an absent page faults
 *           │ P0 │    │ P2 │    │    │
 *           └─▲──┴────┴─┬──┴────┴────┘
 *        move │         │ move (UFFDIO_MOVE: the same physical page, no second copy)
 *           ┌─┴──┬────┬─▼──┬────┬────┐
 *   side    │    │ E1 │    │ S3 │    │   ciphertext, and pages on standby, at the same offset; touched by
 *           └────┴────┴────┴────┴────┘   this library only
 *
 * A page is absent (never touched; page 4 above), plaintext (in guest, or on standby aside), encrypted (aside), or on
 * its way. On its way it counts as plaintext. At every instant, for every zone: plaintext pages ≤ window(zone). Room is
 * made before a page is mapped, never after.
 *
 * A zone with 0 percent is open: all of it may be plaintext, so the kernel maps what is touched, in huge pages where it
 * can, and no fault comes here. The first rise of its percentage ends that; a fall to 0 brings it back, when all pages
 * have been decrypted in the background.
 *
 * A placed window has for each page a frame of physical memory that was chosen for it, and keeps it there (place.c).
 *
 * Faults are answered by threads of the window, one for each CPU that it is told, and best the CPUs of the vCPUs. Only
 * those whose CPU has faults wait for them. The signal SIGRTMIN + 9 of the process is the window's: it wakes them.
 *
 * All functions may be called from any thread; those that take a window end with VB_CLOSED once it is
 * closed, and with VB_FAILED once it has failed. They return 0, a status (status.h) or -errno.
 */
#ifndef VAMBRACE_WINDOW_H
#define VAMBRACE_WINDOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cipher.h"
#include "sample.h"
#include "zone.h"

#define VB_MAXIMUM_ZONES 16
#define VB_MAXIMUM_HANDLERS 64
/* The exit status of a process that left a failed window open: see vb_config.grace_ms. */
#define VB_EXIT_FAILED 70
/* So many pages of a window can never be pinned: the guest needs some to run. */
#define VB_PIN_HEADROOM 16
#define VB_HISTOGRAM 24

struct vb_zone_config {
	uint64_t pages;
	unsigned percent;
	uint64_t pin_budget; /* pages that may be pinned at a time */
};

struct vb_config {
	const struct vb_zone_config *zones;
	size_t zone_count;
	const uint8_t *key;      /* VB_REALM_KEY_BYTES; not needed after the call */
	const uint8_t *instance; /* VB_INSTANCE_BYTES */
	enum vb_cipher_kind cipher;
	const struct vb_provider *provider; /* NULL: libcrypto */
	/* One handler thread for each, pinned to it; none: one thread, anywhere. At most VB_MAXIMUM_HANDLERS. */
	const int *handler_cpus;
	size_t handler_count;
	/*
	 * After a failure, threads that touch an absent page stay blocked until the window is closed. Among
	 * them may be the one that would have closed it. So, if it is not closed within this time, the
	 * a handler wipes keys and memory itself and ends the process with VB_EXIT_FAILED. -1: never.
	 */
	int grace_ms;
	int userfaultfd; /* an open /dev/userfaultfd, which stays the caller's; 0: by the system call */
	bool placed; /* its page frames are chosen: vb_window_draw */
};

struct vb_failure {
	int status;    /* 0: none */
	uint32_t zone;
	uint64_t page; /* within the zone */
};

struct vb_stats {
	uint64_t pages;
	unsigned percent;
	bool open;              /* the kernel maps, so nothing below that counts faults and evictions moves */
	uint64_t window;        /* while a rise is under way: what is allowed at this instant */
	uint64_t plaintext;
	uint64_t plaintext_max; /* since the percentage was last changed */
	uint64_t standby;       /* plaintext pages that are aside */
	uint64_t pinned;
	uint64_t pin_budget;
	uint64_t faults;        /* page faults answered, all kinds */
	uint64_t zero_faults;   /* of pages that had never been touched */
	uint64_t standby_hits;  /* of pages on standby: given back without a cipher */
	uint64_t demotions;     /* pages moved to standby */
	uint64_t evictions;     /* pages encrypted */
	uint64_t discarded;     /* pages given back */
	uint64_t bytes_encrypted;
	uint64_t bytes_decrypted;
	uint64_t busy;          /* moves that found their page pinned by the kernel */
	uint64_t rekeys;
	uint64_t handler_ns;    /* time that the handlers spent on this zone */
	/* Faults by the time from reading it to its answer: element i counts those below 2^i µs / 4, the last all others. */
	uint64_t histogram[VB_HISTOGRAM];
};

struct vb_window;

int vb_window_create(const struct vb_config *config, struct vb_window **out);

/*
 * Stops the handlers, waits for calls under way, wipes keys and memory. The guest's addresses stay reserved
 * and inaccessible until vb_window_free: a thread or a kernel worker that waits for a page, or comes
 * later, gets SIGSEGV or EFAULT. Stop the vCPUs first. A second call does nothing.
 */
void vb_window_close(struct vb_window *window);
/* Closes, and gives everything back. NULL is allowed. No other call may be under way. */
void vb_window_free(struct vb_window *window);

/*
 * Placement of a window that was created so. Until vb_window_settle nobody may touch guest memory, and other calls end with
 * VB_UNPLACED. Repeat: draw pages of new memory, which are there, zeroed, at *address; look at their frames; keep those that bit
 * i % 8 of byte i / 8 tells of, in order, as far as frames are missing. *missing: how many still are. VB_INVALID: the number of
 * bytes is wrong, or placement is over. After an error of the kernel's only closing is possible.
 */
int vb_window_draw(struct vb_window *window, size_t pages, void **address);
int vb_window_keep(struct vb_window *window, const uint8_t *keep, size_t bytes, size_t *missing);
/* Gives back what was not kept: the window can be used. VB_UNPLACED: frames are missing. */
int vb_window_settle(struct vb_window *window);
/* Where the frames of pages that are not in guest memory lie, at the same offsets; NULL once it is closed. */
const void *vb_window_side(const struct vb_window *window);

void *vb_window_address(const struct vb_window *window);
size_t vb_window_bytes(const struct vb_window *window);
/* An eventfd of the window, readable once it failed. */
int vb_window_failure_fd(const struct vb_window *window);
struct vb_failure vb_window_failure(struct vb_window *window);

/* Through the window, without a page fault. The buffers must not lie in it. VB_INVALID: out of range. */
int vb_window_write(struct vb_window *window, size_t offset, const void *data, size_t bytes);
int vb_window_read(struct vb_window *window, size_t offset, void *data, size_t bytes);

#define VB_DIGEST_BYTES 32
/*
 * The hash of each page from `offset` on, the address of one, the last page padded with zeros. `out`, not
 * in the window, takes VB_DIGEST_BYTES for each. `algorithm` as libcrypto knows it; VB_NO_CIPHER if it does
 * not, or if its digests have another size.
 */
int vb_window_digests(struct vb_window *window, size_t offset, size_t bytes, const char *algorithm, uint8_t *out);

/*
 * Raising returns when the invariant holds at the new value; meanwhile vb_stats.window falls step by step. Lowering is
 * immediate. VB_PINNED: so many pages are pinned that it is impossible (vb_stats.pinned); nothing has changed, except
 * that more pages may be encrypted than before.
 */
int vb_window_set_percent(struct vb_window *window, size_t zone, unsigned percent);
int vb_window_stats(struct vb_window *window, size_t zone, struct vb_stats *out);

/* How soon the zone's pages are touched again (sample.h), since sampling began. */
struct vb_reuse {
	bool on;
	unsigned shift;
	uint64_t ns; /* since it began; until it ended, if it has */
	uint64_t touches;
	uint64_t reuse[VB_REUSE];
};

/*
 * Begins sampling anew, or ends it; what was counted stays. It makes touches of one page in 2^shift into faults. An open zone
 * is not open meanwhile.
 */
int vb_window_sample(struct vb_window *window, size_t zone, bool on);
int vb_window_reuse(struct vb_window *window, size_t zone, struct vb_reuse *out);

/*
 * Keeps the pages of a range in guest memory, for a device; all of them or none. A page that is pinned several times is
 * let go by as many calls. VB_BUDGET: the zone's budget does not allow it. VB_INVALID: not whole pages, or out of range.
 */
int vb_window_pin(struct vb_window *window, size_t offset, size_t bytes);
int vb_window_unpin(struct vb_window *window, size_t offset, size_t bytes);

/*
 * The guest does not need the contents of these whole pages: they are dropped, without a cipher, and read as zeros next.
 * Pinned pages stay as they are, and so do all pages of an open zone. VB_INVALID: not whole pages, or out of range.
 */
int vb_window_discard(struct vb_window *window, size_t offset, size_t bytes);

#endif
