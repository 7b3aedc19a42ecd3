/* userfaultfd: the operations that the window needs. They return 0 or -errno unless said. */
#ifndef VAMBRACE_UFFD_H
#define VAMBRACE_UFFD_H

#include <stddef.h>
#include <stdint.h>

/* Memory may consist of several mappings if these end at multiples of it: the kernel does nothing across such an end. */
#define VB_UFFD_STEP ((size_t)2 << 20)

/*
 * A userfaultfd for faults of the kernel too (KVM, vhost), made by `device`, which is an open /dev/userfaultfd, or, where
 * that is 0, by the system call. VB_NO_USERFAULTFD, VB_NO_MOVE (no UFFDIO_MOVE: before Linux 6.8).
 */
int vb_uffd_open(int device, int *out);

int vb_uffd_register(int fd, void *start, size_t bytes);
/* Threads that wait for pages of this range are woken, and find what the kernel maps. */
int vb_uffd_unregister(int fd, void *start, size_t bytes);

/*
 * These go on until all is done or an error stands in the way, and say in *done how many bytes were done,
 * errors included. EAGAIN is retried here. Threads that wait for these pages are woken, but not those that wait for
 * pages moved out.
 */
int vb_uffd_move_in(int fd, void *to, void *from, size_t bytes, size_t *done);
int vb_uffd_move_out(int fd, void *to, void *from, size_t bytes, size_t *done);
int vb_uffd_copy(int fd, void *to, const void *from, size_t bytes, size_t *done);

void vb_uffd_wake(int fd, void *start, size_t bytes);

struct vb_fault {
	uintptr_t address; /* rounded down to a page */
	int thread;        /* who waits, as gettid(2) tells it; 0: not known */
};

/* Waits for page faults: their number, at most `limit`, 0 when a signal came, or -errno. */
int vb_uffd_read(int fd, struct vb_fault *faults, int limit);

#endif
