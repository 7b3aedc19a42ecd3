/* What devices and the guest's memory manager say of pages: to be kept where they are, or not needed any more. */
#define _GNU_SOURCE
#include "window_internal.h"

#include <errno.h>
#include <sys/mman.h>

#include "erase.h"
#include "status.h"
#include "uffd.h"

/* Headers older than Linux 5.18 lack it: locked pages, too, are dropped. */
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* vb_enter for a call on whole pages, which may lie in several zones: from *first on, before *end. */
static int enter_range(struct vb_window *window, size_t offset, size_t bytes, uint32_t *first, uint32_t *end)
{
	int status = vb_enter(window);

	if (status)
		return status;
	if (offset % VB_PAGE_SIZE_BYTES || bytes % VB_PAGE_SIZE_BYTES || offset > window->bytes ||
	    bytes > window->bytes - offset) {
		vb_leave(window);
		return VB_INVALID;
	}
	*first = (uint32_t)(offset / VB_PAGE_SIZE_BYTES);
	*end = *first + (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);
	return VB_OK;
}

/* --- pinned -------------------------------------------------------------------------------------------------- */

/* With the lock held: whether one more page of this zone may be pinned. */
static int check_budget(const struct vb_area *area, uint32_t page)
{
	const struct vb_zone *zone = &area->zone;

	if (zone->pages[page].pins)
		return zone->pages[page].pins < VB_MOST_PINS ? VB_OK : VB_BUDGET;
	if (zone->pinned >= area->pin_budget)
		return VB_BUDGET;
	return area->open || zone->pinned + 1 + VB_PIN_HEADROOM <= zone->goal ? VB_OK : VB_BUDGET;
}

static int unpin_page(struct vb_window *window, uint32_t page)
{
	struct vb_area *area = vb_area_of(window, page);
	struct vb_zone *zone = &area->zone;
	uint32_t index = page - zone->first;
	int status = VB_OK;

	pthread_mutex_lock(&area->lock);
	while (!area->open && zone->pages[index].state == VB_LEAVING && !atomic_load(&window->failed))
		vb_await(area);
	if (atomic_load(&window->failed))
		status = VB_FAILED;
	else if (!zone->pages[index].pins)
		status = VB_INVALID;
	else if (!area->open)
		vb_zone_unpin(zone, index);
	else if (!--zone->pages[index].pins)
		zone->pinned--;
	vb_settled(area);
	pthread_mutex_unlock(&area->lock);
	return status;
}

static int pin_page(struct vb_window *window, uint32_t page)
{
	struct vb_area *area = vb_area_of(window, page);
	struct vb_zone *zone = &area->zone;
	uint32_t index = page - zone->first;
	bool open;
	int status;

	pthread_mutex_lock(&window->calls.use);
	status = vb_hold(window, &window->calls, page);
	pthread_mutex_unlock(&window->calls.use);
	if (status)
		return status;
	pthread_mutex_lock(&area->lock);
	status = check_budget(area, index);
	open = area->open;
	if (open) {
		if (!status && !zone->pages[index].pins++)
			zone->pinned++;
		/* It may not be there yet: the kernel maps it, for the device to find, while the zone still cannot be watched. */
		pthread_mutex_unlock(&area->lock);
		if (!status && madvise(window->guest + vb_offset(page), VB_PAGE_SIZE_BYTES, MADV_POPULATE_WRITE) != 0)
			status = -errno;
		pthread_mutex_lock(&area->lock);
		if (status < 0 && !--zone->pages[index].pins)
			zone->pinned--;
		area->copies--;
	} else {
		vb_zone_release(zone, index);
		if (!status)
			vb_zone_pin(zone, index);
	}
	vb_settled(area);
	pthread_mutex_unlock(&area->lock);
	return status;
}

int vb_window_pin(struct vb_window *window, size_t offset, size_t bytes)
{
	uint32_t first, page, end;
	int status = enter_range(window, offset, bytes, &first, &end);

	if (status)
		return status;
	for (page = first; page < end && !status; page += !status)
		status = pin_page(window, page);
	while (status && page > first)
		(void)unpin_page(window, --page);
	vb_leave(window);
	return status;
}

int vb_window_unpin(struct vb_window *window, size_t offset, size_t bytes)
{
	uint32_t page, end;
	int status = enter_range(window, offset, bytes, &page, &end);

	if (status)
		return status;
	for (; page < end; page++) {
		int one = unpin_page(window, page);

		status = status ? status : one; /* the others are let go all the same */
	}
	vb_leave(window);
	return status;
}

/* --- given back ---------------------------------------------------------------------------------------------- */

static int drop(void *start, size_t bytes)
{
	if (madvise(start, bytes, MADV_DONTNEED_LOCKED) == 0 || madvise(start, bytes, MADV_DONTNEED) == 0)
		return VB_OK;
	return -errno;
}

/*
 * Gives back a run of pages that are leaving; `aside`: they are not in guest memory. *done of them are dealt with; behind them is
 * one that the kernel holds, or that this process has dropped, and all from that one on are where they were. With the lock held.
 */
static int drop_run(struct vb_window *window, struct vb_area *area, uint32_t page, uint32_t count, bool aside, bool plaintext,
		    uint32_t *done)
{
	struct vb_zone *zone = &area->zone;
	size_t offset = vb_offset(zone->first + page), bytes = vb_offset(count);
	int moved = VB_OK, dropped = VB_OK;

	pthread_mutex_unlock(&area->lock);
	if (!aside) /* first out of the guest's reach */
		moved = vb_uffd_move_out(window->uffd, window->side + offset, window->guest + offset, bytes, &bytes);
	if (plaintext || window->placed)
		vb_erase(window->side + offset, bytes);
	if (bytes && !window->placed) /* a placed page keeps its frame */
		dropped = drop(window->side + offset, bytes);
	pthread_mutex_lock(&area->lock);
	*done = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);
	for (uint32_t i = 0; i < *done; i++)
		vb_zone_forget(zone, page + i);
	if (plaintext)
		vb_zone_lose(zone, *done);
	area->counts.discarded += *done;
	if (moved == -ENOENT && window->placed) {
		moved = VB_UNPLACED;
	} else if (moved == -ENOENT) { /* it is gone already */
		vb_zone_forget(zone, page + *done);
		vb_zone_lose(zone, 1);
		++*done;
	}
	for (uint32_t i = *done; i < count; i++)
		vb_zone_release(zone, page + i);
	vb_settled(area);
	if (dropped)
		return vb_fail(window, dropped, zone->first + page);
	return !moved || moved == -EBUSY || moved == -ENOENT ? VB_OK : vb_fail(window, moved, zone->first + page + *done);
}

/* The run of pages that are where `page` is, taken out; at most `most`. With the lock held. */
static uint32_t take_run(struct vb_zone *zone, uint32_t page, uint32_t most, enum vb_state state)
{
	uint32_t run = 0;

	while (run < most && run < VB_RUN && zone->pages[page + run].state == state) {
		if (state == VB_ENCRYPTED) {
			zone->pages[page + run].state = VB_LEAVING;
			zone->pages[page + run].sealed = 0; /* a new key need not reach it any more */
		} else {
			vb_zone_hold(zone, page + run);
		}
		run++;
	}
	return run;
}

/* Gives back some pages from `page` on, at most `most`; *count says how many were looked at. */
static int discard_some(struct vb_window *window, struct vb_area *area, uint32_t page, uint32_t most, uint32_t *count)
{
	struct vb_zone *zone = &area->zone;
	enum vb_state state;
	int status = VB_OK;

	*count = 1;
	pthread_mutex_lock(&area->lock);
	while (!area->open && !atomic_load(&window->failed) &&
	       (zone->pages[page].state == VB_COMING || zone->pages[page].state == VB_LEAVING))
		vb_await(area);
	state = (enum vb_state)zone->pages[page].state;
	if (atomic_load(&window->failed)) {
		status = VB_FAILED;
	} else if (area->open) {
		*count = most; /* nothing is encrypted here, and to drop small pieces would break huge pages up */
	} else if (state != VB_ABSENT && state != VB_FIXED) {
		uint32_t run = take_run(zone, page, most, state);

		status = drop_run(window, area, page, run, state == VB_STANDBY || state == VB_ENCRYPTED,
				  state != VB_ENCRYPTED, count);
		if (!*count)
			*count = 1; /* the kernel holds it: it stays */
	}
	pthread_mutex_unlock(&area->lock);
	return status;
}

int vb_window_discard(struct vb_window *window, size_t offset, size_t bytes)
{
	uint32_t page, end;
	int status = enter_range(window, offset, bytes, &page, &end);

	if (status)
		return status;
	while (page < end && !status) {
		struct vb_area *area = vb_area_of(window, page);
		uint32_t last = area->zone.first + area->zone.count, count;

		if (atomic_load(&window->closing))
			status = VB_CLOSED;
		else
			status = discard_some(window, area, page - area->zone.first, (end < last ? end : last) - page, &count);
		page += status ? 0 : count;
	}
	vb_leave(window);
	return status;
}
