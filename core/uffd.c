#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
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
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define PAGE_MASK_LOW ((uintptr_t)4095)
#define RETRIES 1000000
#define BATCH 32

static int handshake(int fd)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};

	if (ioctl(fd, UFFDIO_API, &api) == 0)
		return VB_OK;
	return errno == EINVAL ? VB_NO_MOVE : -errno;
}

int vb_uffd_open(int *out)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int status;

	if (fd < 0) {
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (device < 0)
			return VB_NO_USERFAULTFD;
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
		if (fd < 0)
			return VB_NO_USERFAULTFD;
	}
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

/* One ioctl: 0 or -errno; *bytes is what was done (the kernel writes it on errors too). */
typedef int (*step)(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done);

static int move_step(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done)
{
	struct uffdio_move arguments = {.dst = to, .src = from, .len = bytes};
	int result = ioctl(fd, UFFDIO_MOVE, &arguments);

	*done = arguments.move;
	return result ? -errno : 0;
}

static int copy_step(int fd, uintptr_t to, uintptr_t from, size_t bytes, int64_t *done)
{
	struct uffdio_copy arguments = {.dst = to, .src = from, .len = bytes};
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

int vb_uffd_move(int fd, void *to, void *from, size_t bytes, size_t *done)
{
	return repeat(move_step, fd, (uintptr_t)to, (uintptr_t)from, bytes, done);
}

int vb_uffd_copy(int fd, void *to, const void *from, size_t bytes, size_t *done)
{
	return repeat(copy_step, fd, (uintptr_t)to, (uintptr_t)from, bytes, done);
}

void vb_uffd_wake(int fd, void *start, size_t bytes)
{
	struct uffdio_range range = {.start = (uintptr_t)start, .len = bytes};

	(void)ioctl(fd, UFFDIO_WAKE, &range); /* fails only for a wrong range */
}

int vb_uffd_read(int fd, uintptr_t *addresses, int limit)
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
			addresses[count++] = (uintptr_t)messages[i].arg.pagefault.address & ~PAGE_MASK_LOW;
	return count;
}
