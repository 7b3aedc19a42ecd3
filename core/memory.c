/* Address space: for guest memory, for what is aside, and for drawn frames. */
#define _GNU_SOURCE
#include "window_internal.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#include "status.h"
#include "uffd.h"

#define HUGE_PAGE VB_UFFD_STEP
#define MOST_STRIPES 64

int vb_map_memory(size_t bytes, uint8_t **out)
{
	static const int advice[] = {MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DONTFORK, MADV_UNMERGEABLE};
	uint8_t *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (memory == MAP_FAILED)
		return -errno;
	before = -(uintptr_t)memory % HUGE_PAGE;
	if (before)
		munmap(memory, before);
	memory += before;
	munmap(memory + bytes, HUGE_PAGE - before);
	*out = memory;
	for (size_t i = 0; i < sizeof advice / sizeof *advice; i++)
		/* EINVAL: a kernel without huge pages, or without merging */
		if (madvise(memory, bytes, advice[i]) != 0 && errno != EINVAL)
			return -errno;
	return VB_OK;
}

/*
 * To move a page, the kernel locks an object that all pages share which came into being in one mapping (anon_vma), and keeps it
 * locked while it flushes the translation buffers of other processors: two handlers wait for each other there. So every
 * second stripe gets a flag that means nothing to anonymous memory and keeps neighbours from being one mapping.
 */
int vb_stripe_memory(uint8_t *memory, size_t bytes)
{
	size_t pages = bytes / MOST_STRIPES / HUGE_PAGE + 1, stripe = pages * HUGE_PAGE;

	for (size_t at = 0; at < bytes; at += 2 * stripe)
		if (madvise(memory + at, bytes - at < stripe ? bytes - at : stripe, MADV_RANDOM) != 0)
			return -errno;
	return VB_OK;
}

static bool swap_is_on(void)
{
	FILE *swaps = fopen("/proc/swaps", "re");
	char line[256];
	int lines = 0;

	if (!swaps)
		return true; /* not known */
	while (fgets(line, sizeof line, swaps))
		lines++;
	fclose(swaps);
	return lines > 1; /* the first is a heading */
}

int vb_keep_from_swap(struct vb_window *window)
{
	if (mlock2(window->guest, window->bytes, MLOCK_ONFAULT) == 0 &&
	    mlock2(window->side, window->bytes, MLOCK_ONFAULT) == 0)
		return VB_OK;
	/* Pages move only between mappings that are both locked or both not. */
	munlock(window->guest, window->bytes);
	munlock(window->side, window->bytes);
	if (window->placed) /* the kernel would migrate what is not locked */
		return -EPERM;
	return swap_is_on() ? VB_SWAP : VB_OK;
}
