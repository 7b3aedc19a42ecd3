/* Zones at 0 percent, which are the kernel's; how a zone stops being one and becomes one again; and the end of all. */
#define _GNU_SOURCE
#include "window_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "erase.h"
#include "status.h"
#include "uffd.h"

#define MINCORE_RUN 512
#define PAGES_OF_A_HUGE_ONE 512

/* Headers older than Linux 6.1 lack it. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static uint8_t *start_of(const struct vb_window *window, const struct vb_area *area)
{
	return window->guest + vb_offset(area->zone.first);
}

/* EINVAL: a kernel without huge pages. */
static int advise(const struct vb_window *window, const struct vb_area *area, int advice)
{
	return madvise(start_of(window, area), vb_offset(area->zone.count), advice) == 0 || errno == EINVAL ? VB_OK
													    : -errno;
}

int vb_open_zones(struct vb_window *window)
{
	int status = VB_OK;

	for (size_t i = 0; i < window->zone_count && !status; i++) {
		struct vb_area *area = &window->areas[i];

		if (area->open && !window->placed)
			status = advise(window, area, MADV_HUGEPAGE);
		else /* a placed one until its frames are in guest memory */
			status = vb_uffd_register(window->uffd, start_of(window, area), vb_offset(area->zone.count));
	}
	return status;
}

/*
 * Calls `visit` for each page of memory that is there, of `count` from `start` on, without touching one: an absent page
 * would wait for a handler. Goes on after an error, and gives the last one.
 */
static int for_each_resident(uint8_t *start, uint32_t count, void (*visit)(void *context, uint32_t page), void *context)
{
	int status = VB_OK;

	for (uint32_t first = 0; first < count; first += MINCORE_RUN) {
		unsigned char resident[MINCORE_RUN];
		uint32_t run = count - first < MINCORE_RUN ? count - first : MINCORE_RUN;

		if (mincore(start + vb_offset(first), vb_offset(run), resident) != 0) {
			status = -errno;
			continue;
		}
		for (uint32_t i = 0; i < run; i++)
			if (resident[i] & 1)
				visit(context, first + i);
	}
	return status;
}

static void count_page(void *count, uint32_t page)
{
	(void)page;
	++*(uint32_t *)count;
}

uint32_t vb_open_count(struct vb_window *window, const struct vb_area *area)
{
	uint32_t count = 0;

	if (for_each_resident(start_of(window, area), area->zone.count, count_page, &count))
		return area->zone.count; /* at most */
	return count;
}

/* --- open → watched ------------------------------------------------------------------------------------------ */

static void adopt_page(void *context, uint32_t page)
{
	struct vb_zone *zone = context;
	unsigned pins = zone->pages[page].pins;

	vb_zone_gain(zone, 1);
	vb_zone_call(zone, page);
	vb_zone_admit(zone, page);
	if (pins) { /* counted among the pinned all the while */
		zone->pages[page].pins = 0;
		zone->pinned--;
		vb_zone_pin(zone, page);
		zone->pages[page].pins = pins & VB_MOST_PINS;
	}
}

int vb_watch(struct vb_window *window, struct vb_area *area)
{
	struct vb_zone *zone = &area->zone;
	int status;

	while (area->copies)
		vb_await(area);
	status = advise(window, area, MADV_NOHUGEPAGE);
	/* The kernel ends all faults under way first: what is not there afterwards comes through a handler. */
	if (!status)
		status = vb_uffd_register(window->uffd, start_of(window, area), vb_offset(zone->count));
	if (!status) {
		area->open = false;
		status = for_each_resident(start_of(window, area), zone->count, adopt_page, zone);
	}
	/* On an error perhaps a part of the zone is registered, and nobody would answer its faults. */
	return status ? vb_fail(window, status, zone->first) : VB_OK;
}

/* --- watched → open ------------------------------------------------------------------------------------------ */

/* All pages are in guest memory or absent, and none is on its way: the kernel has them from now on. With the lock held. */
static int give_to_kernel(struct vb_window *window, struct vb_area *area)
{
	struct vb_zone *zone = &area->zone;
	int status;

	vb_zone_clear(zone);
	area->open = true;
	vb_settled(area);
	status = vb_uffd_unregister(window->uffd, start_of(window, area), vb_offset(zone->count));
	if (!status && !window->placed) /* a huge page would be other frames */
		status = advise(window, area, MADV_HUGEPAGE);
	return status ? vb_fail(window, status, zone->first) : VB_OK;
}

/*
 * The next page from *page on that is not in guest memory, nor absent where the kernel may map what is; false: there is none.
 * With the lock held.
 */
static bool next_aside(const struct vb_window *window, const struct vb_zone *zone, uint32_t *page)
{
	for (; *page < zone->count; ++*page)
		switch ((enum vb_state)zone->pages[*page].state) {
		case VB_STANDBY:
		case VB_ENCRYPTED:
		case VB_COMING:
		case VB_LEAVING:
			return true;
		case VB_ABSENT:
			if (window->placed)
				return true;
			break;
		default:
			break;
		}
	return false;
}

struct opening {
	struct vb_window *window;
	struct vb_area *area;
};

static void *open_all(void *argument)
{
	struct opening opening = *(struct opening *)argument;
	struct vb_window *window = opening.window;
	struct vb_area *area = opening.area;
	uint32_t page = 0;
	bool aside = true;
	int status = VB_OK;

	free(argument);
	/* With a window of all pages none is sent out any more; but one may have been on its way out before. */
	while (!status && aside && !atomic_load(&area->opener_stop)) {
		pthread_mutex_lock(&area->lock);
		aside = next_aside(window, &area->zone, &page);
		if (!aside) {
			page = 0;
			aside = next_aside(window, &area->zone, &page);
		}
		if (!aside && !atomic_load(&window->failed))
			status = give_to_kernel(window, area);
		pthread_mutex_unlock(&area->lock);
		if (aside) {
			pthread_mutex_lock(&window->calls.use);
			status = vb_hold(window, &window->calls, area->zone.first + page);
			pthread_mutex_unlock(&window->calls.use);
			if (!status)
				vb_let_go(window, area->zone.first + page);
		}
	}
	/* Huge pages again, where the kernel has them; the zone is open already. */
	for (page = 0; !status && !aside && !window->placed && page < area->zone.count && !atomic_load(&area->opener_stop);
	     page += PAGES_OF_A_HUGE_ONE)
		(void)madvise(start_of(window, area) + vb_offset(page),
			      vb_offset(area->zone.count - page < PAGES_OF_A_HUGE_ONE ? area->zone.count - page : PAGES_OF_A_HUGE_ONE), MADV_COLLAPSE);
	return NULL;
}

int vb_opener_start(struct vb_window *window, struct vb_area *area)
{
	struct opening *opening = calloc(1, sizeof *opening);
	int error;

	if (!opening)
		return -ENOMEM;
	*opening = (struct opening){window, area};
	atomic_store(&area->opener_stop, false);
	error = pthread_create(&area->opener, NULL, open_all, opening);
	if (error)
		free(opening);
	else
		area->opener_runs = true;
	return -error;
}

void vb_opener_stop(struct vb_area *area)
{
	if (!area->opener_runs)
		return;
	atomic_store(&area->opener_stop, true);
	pthread_join(area->opener, NULL);
	area->opener_runs = false;
}

/* --- the end ------------------------------------------------------------------------------------------------- */

static void erase_page(void *memory, uint32_t page)
{
	vb_erase((uint8_t *)memory + vb_offset(page), VB_PAGE_SIZE_BYTES);
}

void vb_erase_resident(uint8_t *start, uint32_t count)
{
	(void)for_each_resident(start, count, erase_page, start);
}

/* Aside is plaintext wherever it is not ciphertext for certain: on standby, and on any way that a failure cut short. */
static void erase_aside(void *context, uint32_t page)
{
	const struct vb_window *window = context;

	if (window->pages[page].state != VB_ENCRYPTED)
		vb_erase(window->side + vb_offset(page), VB_PAGE_SIZE_BYTES);
}

void vb_wipe(struct vb_window *window)
{
	uint32_t pages = (uint32_t)(window->bytes / VB_PAGE_SIZE_BYTES);

	for (size_t i = 0; i < window->zone_count; i++)
		vb_secret_erase(&window->areas[i].secret);
	/* What mincore does not tell is lost to us; closing takes the mapping away. */
	vb_erase_resident(window->guest, pages);
	(void)for_each_resident(window->side, pages, erase_aside, window);
}
