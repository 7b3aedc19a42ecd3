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
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../core/status.h"
#include "../../core/uffd.h"

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
static void die(const char *what, int status)
{
	dprintf(STDERR_FILENO, "record: %s: %s\n", what, vb_status_message(status));
	_exit(120);
}

/* The page that came longest ago leaves. One that the kernel is using, or the program has dropped, does not. */
static void evict(uint64_t number)
{
	uintptr_t offset = number * PAGE;
	size_t done;
	int status = vb_uffd_move_out(uffd, (void *)(side + offset), (void *)(heap + offset), PAGE, &done);

	if (!status)
		aside[number] = 1;
	else if (status != -EBUSY && status != -ENOENT)
		die("a page cannot be moved aside", status);
}

static void fetch(uint64_t number)
{
	uintptr_t offset = number * PAGE;
	void *page = (void *)(heap + offset);
	size_t done;
	int status;

	if (aside[number]) {
		status = vb_uffd_move_in(uffd, page, (void *)(side + offset), PAGE, &done);
		if (status)
			die("a page cannot be moved back", status);
		aside[number] = 0;
		return;
	}
	/* Not the kernel's shared page of zeros: that one cannot be moved. */
	status = vb_uffd_copy(uffd, page, zeros, PAGE, &done);
	if (status == -EEXIST) /* it is there: another thread's fault at it was queued as well */
		vb_uffd_wake(uffd, page, PAGE);
	else if (status)
		die("a page cannot be mapped", status);
}

static void *serve(void *unused)
{
	uint32_t *numbers = (uint32_t *)(records + 1);
	struct vb_fault fault;

	for (;;) {
		uint64_t number, *place;

		if (vb_uffd_read(uffd, &fault, 1) != 1)
			continue;
		number = (fault.address - heap) / PAGE;
		if (number >= PAGES)
			die("a fault outside of the heap", VB_INVALID);
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
	int status;

	if (madvise((void *)start, HEAP, MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
		die("no small pages", -errno);
	status = vb_uffd_register(uffd, (void *)start, HEAP);
	if (status)
		die("the heap cannot be watched", status);
}

__attribute__((constructor)) static void start(void)
{
	const char *file = getenv("RECORD_FILE"), *limit = getenv("RECORD_MOST");
	void *volatile allocated; /* or the compiler leaves both calls out */
	pthread_t thread;
	size_t bytes;
	int fd, status;

	if (!file || !limit)
		return;
	most = strtoull(limit, NULL, 10);
	bytes = sizeof *records + most * sizeof(uint32_t);
	fd = open(file, O_RDWR | O_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
		die(file, -errno);
	records = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	side = (uintptr_t)mmap(NULL, HEAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (records == MAP_FAILED || side == (uintptr_t)MAP_FAILED)
		die("no address space", -errno);
	status = vb_uffd_open(0, &uffd);
	if (status)
		die("no userfaultfd that can move pages (root? Linux 6.8?)", status);
	status = pthread_create(&thread, NULL, serve, NULL); /* before the heap is watched: it allocates */
	if (status)
		die("no thread", -status);
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
