/* Pages come: zeros where there was nothing, from standby by a move, and decrypted. */
#include "window_internal.h"

#include <errno.h>
#include <string.h>

#include "erase.h"
#include "status.h"
#include "uffd.h"

/* Pages from `page` on that are where it is, at most `most`. */
static uint32_t run_of(const struct vb_area *area, uint32_t page, uint32_t most)
{
	const struct vb_zone *zone = &area->zone;
	unsigned state = zone->pages[page].state;
	uint32_t run = 1;

	/* A sampled page comes when it is touched, not with others. */
	while (run < most && page + run < zone->count && zone->pages[page + run].state == state &&
	       !vb_sampled(&area->sample, page + run))
		run++;
	return run;
}

/*
 * Copies of these, not the kernel's shared page of zeros: a guest writes to what it touches first, and to part from
 * the shared page costs another fault and a flush of the translation buffers.
 */
static const uint8_t zeros[VB_RUN * VB_PAGE_SIZE_BYTES];

/* After a part of a run was mapped: `done` of `count` pages that are coming are there. With the lock held. */
static void arrive(struct vb_area *area, uint32_t page, uint32_t count, uint32_t done)
{
	struct vb_zone *zone = &area->zone;

	for (uint32_t i = 0; i < done; i++)
		vb_zone_admit(zone, page + i);
	for (uint32_t i = done; i < count; i++)
		vb_zone_forget(zone, page + i);
	vb_zone_lose(zone, count - done);
	vb_settled(area);
}

/* Moves plaintext that is aside into guest memory, without a lock; *done pages of `count`. What stays aside is erased. */
static int move_in(struct vb_window *window, uint32_t page, uint32_t count, uint32_t *done)
{
	size_t offset = vb_offset(page), bytes = 0;
	int status = vb_uffd_move_in(window->uffd, window->guest + offset, window->side + offset, vb_offset(count), &bytes);

	if (status) /* what is there of it */
		vb_erase_resident(window->side + offset + bytes, count - (uint32_t)(bytes / VB_PAGE_SIZE_BYTES));
	*done = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);
	return status;
}

/*
 * From the kernel, with new frames; or, in a placed window, with those that lie aside, whose contents are zeros already. Without a
 * lock; *done bytes. What stays aside is zeros.
 */
static int bring_contents(struct vb_window *window, uint32_t page, uint32_t count, const void *data, uint32_t *done)
{
	size_t offset = vb_offset(page), bytes = 0;
	int status;

	if (window->placed) {
		if (data != zeros)
			memcpy(window->side + offset, data, vb_offset(count));
		status = move_in(window, page, count, done);
		return status == -ENOENT ? VB_UNPLACED : status;
	}
	status = vb_uffd_copy(window->uffd, window->guest + offset, data, vb_offset(count), &bytes);
	*done = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);
	return status;
}

/* Maps these contents at pages that are coming, for which there is room; *mapped of them. With the lock held. */
static int map_contents(struct vb_window *window, struct vb_area *area, uint32_t page, uint32_t count, const void *data,
			uint32_t *mapped)
{
	uint8_t *to = window->guest + vb_offset(area->zone.first + page);
	uint32_t done;
	int status;

	pthread_mutex_unlock(&area->lock);
	status = bring_contents(window, area->zone.first + page, count, data, &done);
	pthread_mutex_lock(&area->lock);
	if (!done && status == -EEXIST && data == zeros && !window->placed)
		done = 1; /* it is there, whoever mapped it: it counts */
	arrive(area, page, count, done);
	if (status) /* who waits comes again, and finds them there or absent */
		vb_uffd_wake(window->uffd, to, vb_offset(count));
	*mapped = done;
	return done ? VB_OK : vb_fail(window, status, area->zone.first + page);
}

/* From standby to where it is coming. With the lock held. */
static int map_standby(struct vb_window *window, struct vb_area *area, uint32_t page, uint32_t count)
{
	uint32_t done;
	int status;

	pthread_mutex_unlock(&area->lock);
	status = move_in(window, area->zone.first + page, count, &done);
	pthread_mutex_lock(&area->lock);
	arrive(area, page, count, done);
	return status ? vb_fail(window, status, area->zone.first + page + done) : VB_OK;
}

/* With the lock held. */
static int map_decrypted(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, uint32_t page, uint32_t count)
{
	uint32_t first = area->zone.first + page, done = 0;
	struct vb_cipher *cipher;
	size_t failed = 0;
	int opened, moved = VB_OK, status = vb_cipher_for(window, lane, area, &cipher);

	if (status)
		return status;
	vb_jobs_of(window, area, page, count, lane->jobs);
	area->ciphering++;
	pthread_mutex_unlock(&area->lock);
	opened = vb_open_pages(cipher, lane->jobs, count, &failed);
	if (!opened)
		moved = move_in(window, first, count, &done);
	pthread_mutex_lock(&area->lock);
	area->ciphering--;
	if (opened) {
		vb_zone_lose(&area->zone, count); /* erased */
		for (uint32_t i = 0; i < count; i++)
			vb_zone_depart(&area->zone, page + i);
		vb_settled(area);
		return vb_fail(window, opened, first + (uint32_t)failed);
	}
	area->counts.bytes_decrypted += vb_offset(count);
	arrive(area, page, count, done);
	return moved ? vb_fail(window, moved, first + done) : VB_OK;
}

/* There is no room for pages that were called: they are where they were, and who waits for them comes again. */
static void uncall(struct vb_window *window, struct vb_area *area, uint32_t page, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (area->zone.pages[page + i].sealed)
			vb_zone_depart(&area->zone, page + i);
		else
			vb_zone_forget(&area->zone, page + i);
	}
	vb_settled(area);
	vb_uffd_wake(window->uffd, window->guest + vb_offset(area->zone.first + page), vb_offset(count));
}

/*
 * Brings a page of `area` in that is absent, encrypted or on standby, and perhaps more behind it. `counts`, where given, counts
 * it as a fault. With the lock held.
 */
static int bring(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, uint32_t page, struct vb_stats *counts)
{
	struct vb_zone *zone = &area->zone;
	enum vb_state state = (enum vb_state)zone->pages[page].state;
	struct vb_stream *stream;
	uint32_t want = vb_zone_expect(zone, page, &stream), most = zone->goal / 8 ? zone->goal / 8 : 1, count;
	int status = VB_OK;

	if (state == VB_ABSENT && zone->goal > zone->plaintext && zone->goal - zone->plaintext >= VB_RUN)
		want = VB_RUN; /* as long as there is room */
	count = run_of(area, page, want < most ? want : most);
	for (uint32_t i = 0; i < count; i++)
		vb_zone_call(zone, page + i);
	if (state != VB_STANDBY) {
		status = vb_make_room(window, lane, area, count);
		if (status) {
			uncall(window, area, page, count);
			return status;
		}
	}
	*stream = (struct vb_stream){.next = page + count, .run = count};
	if (counts) {
		counts->faults++;
		counts->zero_faults += state == VB_ABSENT;
		counts->standby_hits += state == VB_STANDBY;
	}
	switch (state) {
	case VB_ABSENT:
		return map_contents(window, area, page, count, zeros, &count);
	case VB_STANDBY:
		return map_standby(window, area, page, count);
	default:
		return map_decrypted(window, lane, area, page, count);
	}
}

/* A sampled page was touched: one of those before it must be seen when it is touched again. With the lock held. */
static int note_touch(struct vb_window *window, struct vb_area *area, uint32_t page)
{
	uint32_t aside;

	return vb_sample_note(&area->sample, page, &aside) ? vb_set_aside(window, area, aside) : VB_OK;
}

/* Makes a page plaintext in guest memory, and holds it there if so asked. With the lock held. */
static int page_in(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, uint32_t page, bool hold)
{
	struct vb_zone *zone = &area->zone;
	uint32_t index = page - zone->first;
	int status = VB_OK;

	for (bool there = false; !there && !status;) {
		if (atomic_load(&window->failed)) {
			status = VB_FAILED;
			break;
		}
		if (area->open) {
			/* Its last faults may have come while the kernel was taking it over, too late to be woken by that. */
			if (!hold)
				vb_uffd_wake(window->uffd, window->guest + vb_offset(page), VB_PAGE_SIZE_BYTES);
			area->copies += hold;
			break;
		}
		switch ((enum vb_state)zone->pages[index].state) {
		case VB_COMING:
			there = !hold; /* who waits for it is woken by the one that brings it */
			if (there)
				break;
			/* fall through */
		case VB_LEAVING:
			vb_await(area);
			break;
		case VB_FRESH:
		case VB_MAIN:
		case VB_FIXED:
			there = true;
			if (hold)
				vb_zone_hold(zone, index);
			else
				vb_uffd_wake(window->uffd, window->guest + vb_offset(page), VB_PAGE_SIZE_BYTES);
			break;
		default:
			status = bring(window, lane, area, index, hold ? NULL : &area->counts);
			if (!status && !hold && vb_sampled(&area->sample, index))
				status = note_touch(window, area, index);
			there = !hold;
		}
	}
	return status;
}

int vb_hold(struct vb_window *window, struct vb_lane *lane, uint32_t page)
{
	struct vb_area *area = vb_area_of(window, page);
	int status;

	pthread_mutex_lock(&area->lock);
	status = page_in(window, lane, area, page, true);
	pthread_mutex_unlock(&area->lock);
	return status;
}

/* The first i with ns < 250 · 2^i, at most the last. */
static unsigned bucket_of(uint64_t ns)
{
	unsigned bucket = 0;

	while (bucket < VB_HISTOGRAM - 1 && ns >= (uint64_t)250 << bucket)
		bucket++;
	return bucket;
}

int vb_answer(struct vb_window *window, struct vb_lane *lane, uint32_t page, uint64_t start)
{
	struct vb_area *area = vb_area_of(window, page);
	uint64_t answered, evicted;
	int status;

	pthread_mutex_lock(&area->lock);
	status = page_in(window, lane, area, page, false);
	if (!status) {
		answered = vb_now_ns();
		evicted = area->counts.evictions;
		area->counts.histogram[bucket_of(answered - start)]++;
		status = vb_tend(window, lane, area);
		if (status == VB_PINNED)
			status = VB_OK; /* it is answered; room is for the next one to find */
		if (area->counts.evictions != evicted)
			answered = vb_now_ns();
		area->counts.handler_ns += answered - start;
	}
	pthread_mutex_unlock(&area->lock);
	return status;
}

void vb_let_go(struct vb_window *window, uint32_t page)
{
	struct vb_area *area = vb_area_of(window, page);

	pthread_mutex_lock(&area->lock);
	/* An open zone stays so while something is copied, and a held page is not in an open one. */
	if (area->open)
		area->copies--;
	else
		vb_zone_release(&area->zone, page - area->zone.first);
	vb_settled(area);
	pthread_mutex_unlock(&area->lock);
}

int vb_page_fill(struct vb_window *window, struct vb_lane *lane, uint32_t page, uint32_t most, const void *data,
		 uint32_t *count)
{
	struct vb_area *area = vb_area_of(window, page);
	struct vb_zone *zone = &area->zone;
	uint32_t index = page - zone->first;
	int status = VB_OK;

	*count = 0;
	pthread_mutex_lock(&area->lock);
	if (atomic_load(&window->failed)) {
		status = VB_FAILED;
	} else if (most && !area->open && zone->pages[index].state == VB_ABSENT) {
		uint32_t run;

		if (most > zone->goal / 2)
			most = zone->goal / 2;
		run = run_of(area, index, most < VB_RUN ? most ? most : 1 : VB_RUN);
		for (uint32_t i = 0; i < run; i++)
			vb_zone_call(zone, index + i);
		status = vb_make_room(window, lane, area, run);
		if (status)
			uncall(window, area, index, run);
		else
			status = map_contents(window, area, index, run, data, count);
	}
	pthread_mutex_unlock(&area->lock);
	return status;
}
