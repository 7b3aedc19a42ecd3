#define _DEFAULT_SOURCE /* mincore */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "status.h"

/* Headers older than Linux 6.8 lack these. */
#ifndef UFFDIO_MOVE
#define _UFFDIO_MOVE 0x05
struct uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#ifndef UFFDIO_MOVE_MODE_DONTWAKE
#define UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define PAGE_MASK_LOW ((uintptr_t)4095)
#define RETRIES 1000000
#define BATCH 32

static int handshake(int fd)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE | UFFD_FEATURE_THREAD_ID};

	if (ioctl(fd, UFFDIO_API, &api) == 0)
		return VB_OK;
	return errno == EINVAL ? VB_NO_MOVE : -errno;
}

int vb_uffd_open(int device, int *out)
{
	int fd = device ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC) : (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	int status;

	if (fd < 0)
		return VB_NO_USERFAULTFD;
	status = handshake(fd);
	if (status) {
		close(fd);
		return status;
	}
	*out = fd;
	return VB_OK;
}

int vb_uffd_register(int fd, void *start, size_t bytes)
{
	const uint64_t needed = (uint64_t)1 << _UFFDIO_MOVE | (uint64_t)1 << _UFFDIO_COPY |
				(uint64_t)1 << _UFFDIO_WAKE;
	struct uffdio_register arguments = {
		.range = {.start = (uintptr_t)start, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &arguments) != 0)
		return -errno;
	return (arguments.ioctls & needed) == needed ? VB_OK : VB_NO_MOVE;
}

int vb_uffd_unregister(int fd, void *start, size_t bytes)
{
	struct uffdio_range range = {.start = (uintptr_t)start, .len = bytes};

	return ioctl(fd, UFFDIO_UNREGISTER, &range) == 0 ? VB_OK : -errno;
}

/* How many of these bytes of guest memory, or of what is aside, are in one mapping for certain. */
static size_t in_one_mapping(uintptr_t start, size_t bytes)
{
	size_t left = VB_UFFD_STEP - start % VB_UFFD_STEP;

	return bytes < left ? bytes : left;
}

/* One ioctl: 0 or -errno; *done is what was done (the kernel writes it on errors too), which may be less than all. */
typedef int (*step)(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done);

static int move(int fd, uintptr_t to, uintptr_t from, size_t bytes, uint64_t mode, int64_t *done)
{
	size_t some = in_one_mapping(to, in_one_mapping(from, bytes));
	struct uffdio_move arguments = {.dst = to, .src = from, .len = some, .mode = mode};
	int result = ioctl(fd, UFFDIO_MOVE, &arguments);

	*done = arguments.move;
	return result ? -errno : 0;
}

static int move_in_step(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done)
{
	return move(fd, to, from, bytes, 0, done);
}

static int move_out_step(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done)
{
	return move(fd, to, from, bytes, UFFDIO_MOVE_MODE_DONTWAKE, done);
}

static int copy_step(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done)
{
	struct uffdio_copy arguments = {.dst = to, .src = from, .len = in_one_mapping(to, bytes)};
	int result = ioctl(fd, UFFDIO_COPY, &arguments);

	*done = arguments.copy;
	return result ? -errno : 0;
}

static int repeat(step operation, int fd, uintptr_t to, uintptr_t from, size_t bytes, size_t *done)
{
	*done = 0;
	for (int i = 0; *done < bytes; i++) {
		int64_t part = 0;
		int status = operation(fd, to + *done, from + *done, bytes - *done, &part);

		if (part > 0)
			*done += (size_t)part; /* a part was done: the error, if any, is found again */
		else if (status != -EAGAIN || i == RETRIES)
			return status ? status : -EIO;
		else
			sched_yield();
	}
	return 0;
}

void vb_uffd_wake(int fd, void *start, size_t bytes)
{
	struct uffdio_range range = {.start = (uintptr_t)start, .len = bytes};

	(void)ioctl(fd, UFFDIO_WAKE, &range); /* fails only for a wrong range */
}

/* How many pages from `page` on, at most `limit`, are mapped or not, as `there` says; without touching one. */
static size_t count_pages(uintptr_t page, size_t limit, bool there)
{
	unsigned char resident[BATCH];
	size_t count = 0;

	if (limit > BATCH)
		limit = BATCH;
	if (mincore((void *)page, limit * (PAGE_MASK_LOW + 1), resident) != 0)
		return 0;
	while (count < limit && (resident[count] & 1) == there)
		count++;
	return count;
}

/*
 * A kernel that moves several pages at a time (seen with 6.18, while another thread moves pages in the same page table) may
 * have moved them, begin again by itself, and then find them where they were to go. The caller owns these pages: when
 * they are there and not here any more, they have been moved.
 */
static int move_all(step operation, int fd, uintptr_t to, uintptr_t from, size_t bytes, size_t *done)
{
	int status = repeat(operation, fd, to, from, bytes, done);

	while (status == -EEXIST && *done < bytes) {
		size_t left = (bytes - *done) / (PAGE_MASK_LOW + 1), more = 0;
		size_t arrived = count_pages(to + *done, left, true);

		if (arrived)
			arrived = count_pages(from + *done, arrived, false);
		if (!arrived)
			break;
		vb_uffd_wake(fd, (void *)(to + *done), arrived * (PAGE_MASK_LOW + 1)); /* the kernel did not */
		*done += arrived * (PAGE_MASK_LOW + 1);
		status = *done < bytes ? repeat(operation, fd, to + *done, from + *done, bytes - *done, &more) : 0;
		*done += more;
	}
	return status;
}

int vb_uffd_move_in(int fd, void *to, void *from, size_t bytes, size_t *done)
{
	return move_all(move_in_step, fd, (uintptr_t)to, (uintptr_t)from, bytes, done);
}

int vb_uffd_move_out(int fd, void *to, void *from, size_t bytes, size_t *done)
{
	return move_all(move_out_step, fd, (uintptr_t)to, (uintptr_t)from, bytes, done);
}

int vb_uffd_copy(int fd, void *to, const void *from, size_t bytes, size_t *done)
{
	return repeat(copy_step, fd, (uintptr_t)to, (uintptr_t)from, bytes, done);
}

int vb_uffd_read(int fd, struct vb_fault *faults, int limit)
{
	struct uffd_msg messages[BATCH];
	ssize_t bytes;
	int count = 0;

	if (limit > BATCH)
		limit = BATCH;
	bytes = read(fd, messages, (size_t)limit * sizeof *messages);
	if (bytes < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (size_t i = 0; i < (size_t)bytes / sizeof *messages; i++)
		if (messages[i].event == UFFD_EVENT_PAGEFAULT)
			faults[count++] = (struct vb_fault){
				.address = (uintptr_t)messages[i].arg.pagefault.address & ~PAGE_MASK_LOW,
				.thread = (int)messages[i].arg.pagefault.feat.ptid,
			};
	return count;
}
