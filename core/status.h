/* What the functions of this library return: 0, a positive status below, or -errno of a system call. */
#ifndef VAMBRACE_STATUS_H
#define VAMBRACE_STATUS_H

enum vb_status {
	VB_OK = 0,
	VB_INVALID = 1,        /* an argument is out of its range */
	VB_CLOSED = 2,         /* the window is closed */
	VB_FAILED = 3,         /* the window failed before; see vb_window_failure */
	VB_AUTHENTICATION = 4, /* a page's ciphertext, tag or version was changed */
	VB_PINNED = 5,         /* too many pages are pinned for the window asked for */
	VB_EXHAUSTED = 6,      /* a page's version has no successor: the key must not be used any more */
	VB_NO_CIPHER = 7,      /* libcrypto does not offer the cipher */
	VB_SELF_TEST = 8,      /* the cipher gave a wrong answer */
	VB_CRYPTO = 9,         /* libcrypto failed */
	VB_NO_USERFAULTFD = 10, /* userfaultfd cannot be opened */
	VB_NO_MOVE = 11,       /* the kernel has no UFFDIO_MOVE */
	VB_SWAP = 12,          /* swap is on, and memory could not be locked */
	VB_PAGE_SIZE = 13,     /* the kernel's pages are not of 4096 bytes */
	VB_BUDGET = 14,        /* more pages would be pinned than the zone's budget allows */
	VB_UNPLACED = 15,      /* pages of a placed window have no frame, or have lost it */
};

/* One line in English, without a full stop; valid for ever (for -errno: what strerror gives). */
const char *vb_status_message(int status);

#endif
