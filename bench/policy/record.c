/*
 * Records which pages of its heap an unmodified program touches. Preloaded (LD_PRELOAD), it makes the C library's
 * whole heap one region that userfaultfd watches, of which only the RESIDENT pages that faulted last are there: the
 * others are moved aside, and every fault's page number goes to a file. So references within the last RESIDENT pages
 * are not seen, which a window many times larger does not notice.
 *
 * Not recorded: the stack, static data, mapped files. The program must not fork. Root, or a kernel that lets everybody
 * use userfaultfd; Linux 6.8.
 *
 *   RECORD_FILE   written from offset 0: 64 bits with the number of records, then 32 bits each (the machine's order)
 *   RECORD_MOST   records; after these the program runs on, unrecorded
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Headers older than Linux 6.8 lack these. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

#define PAGE ((uintptr_t)4096)
#define RESIDENT 256
#define HEAP ((size_t)2 << 30)
#define PAGES (HEAP / PAGE)

static int uffd;
static uintptr_t heap, side;
static uint8_t aside[PAGES];
static const uint8_t zeros[4096];
static uint64_t resident[RESIDENT]; /* a ring; 0: none, else the page's number + 1 */
static uint64_t turn;
static uint64_t *records; /* their number; the records are behind it */
static uint64_t most;

/* One line, without the heap. Nobody can go on: a page would be missing. */
static void die(const char *what)
{
	dprintf(STDERR_FILENO, "record: %s: %s\n", what, strerror(errno));
	_exit(120);
}

static int move(uintptr_t to, uintptr_t from)
{
	struct uffdio_move arguments = {.dst = to, .src = from, .len = PAGE};

	while (ioctl(uffd, UFFDIO_MOVE, &arguments) != 0)
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

/* The page that came longest ago leaves. One that the kernel is using, or the program has dropped, does not. */
static void evict(uint64_t number)
{
	uintptr_t offset = number * PAGE;
	int status = move(side + offset, heap + offset);

	if (!status)
		aside[number] = 1;
	else if (status != -EBUSY && status != -ENOENT)
		die("a page cannot be moved aside");
}

static void fetch(uint64_t number)
{
	uintptr_t offset = number * PAGE;
	/* Not the kernel's shared page of zeros: that one cannot be moved. */
	struct uffdio_copy copy = {.dst = heap + offset, .src = (uintptr_t)zeros, .len = PAGE};
	struct uffdio_range range = {.start = heap + offset, .len = PAGE};

	if (aside[number]) {
		if (move(heap + offset, side + offset))
			die("a page cannot be moved back");
		aside[number] = 0;
	} else if (ioctl(uffd, UFFDIO_COPY, &copy) != 0) {
		/* It is there: another thread's fault at it was queued as well. */
		if (errno != EEXIST || ioctl(uffd, UFFDIO_WAKE, &range) != 0)
			die("a page cannot be mapped");
	}
}

static void *serve(void *unused)
{
	uint32_t *numbers = (uint32_t *)(records + 1);
	struct uffd_msg message;

	for (;;) {
		uint64_t number, *place;

		if (read(uffd, &message, sizeof message) != (ssize_t)sizeof message)
			continue;
		number = (message.arg.pagefault.address - heap) / PAGE;
		if (message.event != UFFD_EVENT_PAGEFAULT || number >= PAGES)
			die("an event that was not asked for");
		if (*records < most) {
			numbers[*records] = (uint32_t)number;
			++*records;
			place = &resident[turn++ % RESIDENT];
			if (*place && *place != number + 1)
				evict(*place - 1);
			*place = number + 1;
		}
		fetch(number);
	}
	return unused;
}

static void watch(uintptr_t start)
{
	struct uffdio_register arguments = {
		.range = {.start = start, .len = HEAP},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (madvise((void *)start, HEAP, MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
		die("no small pages");
	if (ioctl(uffd, UFFDIO_REGISTER, &arguments) != 0)
		die("the heap cannot be watched");
}

__attribute__((constructor)) static void start(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	const char *file = getenv("RECORD_FILE"), *limit = getenv("RECORD_MOST");
	void *volatile allocated; /* or the compiler leaves both calls out */
	pthread_t thread;
	size_t bytes;
	int fd;

	if (!file || !limit)
		return;
	most = strtoull(limit, NULL, 10);
	bytes = sizeof *records + most * sizeof(uint32_t);
	fd = open(file, O_RDWR | O_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
		die(file);
	records = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	side = (uintptr_t)mmap(NULL, HEAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (records == MAP_FAILED || side == (uintptr_t)MAP_FAILED)
		die("no address space");
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0)
		die("no userfaultfd that can move pages (root? Linux 6.8?)");
	if (pthread_create(&thread, NULL, serve, NULL) != 0) /* before the heap is watched: it allocates */
		die("no thread");
	/* From now on malloc takes everything from one heap, which grows by all of its pages at once. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, -1);
	mallopt(M_TOP_PAD, (int)(HEAP - 1)); /* an int */
	heap = ((uintptr_t)sbrk(0) + PAGE - 1) & ~(PAGE - 1);
	allocated = malloc(1 << 20); /* more than the heap has */
	free(allocated);
	watch(side);
	watch(heap);
}
