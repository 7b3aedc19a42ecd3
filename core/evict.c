/* Pages go: from guest memory to standby, and encrypted from there. */
#include "window_internal.h"

#include <errno.h>

#include "erase.h"
#include "status.h"
#include "uffd.h"

/* Pages that are encrypted in one step, where there is no hurry for more. */
#define BATCH 16

int vb_cipher_for(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, struct vb_cipher **out)
{
	struct vb_cipher **cipher = &lane->ciphers[area - window->areas];
	int status;

	if (*cipher && vb_cipher_epoch(*cipher) != area->secret.epoch) {
		vb_cipher_destroy(*cipher);
		*cipher = NULL;
	}
	if (!*cipher) {
		status = vb_cipher_create(&area->secret, cipher);
		if (status)
			return vb_fail(window, status, area->zone.first);
	}
	*out = *cipher;
	return VB_OK;
}

static void job_of(struct vb_window *window, const struct vb_area *area, uint32_t page, struct vb_job *job)
{
	struct vb_page *entry = &area->zone.pages[page];

	*job = (struct vb_job){
		.page = page,
		.version = entry->version,
		.data = window->side + vb_offset(area->zone.first + page),
		.tag = entry->tag,
	};
}

void vb_jobs_of(struct vb_window *window, const struct vb_area *area, uint32_t page, uint32_t count,
		struct vb_job *jobs)
{
	for (uint32_t i = 0; i < count; i++)
		job_of(window, area, page + i, &jobs[i]);
}

/* One page that is encrypted under the last epoch's key, in its place, under the present one's. */
static int reseal(struct vb_window *window, struct vb_area *area, uint32_t page, struct vb_cipher *old,
		  struct vb_cipher *new)
{
	struct vb_job job;
	size_t failed;
	int status;

	job_of(window, area, page, &job);
	status = vb_open_pages(old, &job, 1, &failed);
	if (status)
		return status;
	job.version = 1;
	status = vb_seal_begin(new, &job, 1);
	if (!status)
		status = vb_seal_finish(new);
	if (status)
		return status;
	vb_flush(job.data, VB_PAGE_SIZE_BYTES);
	area->zone.pages[page].version = 1;
	return VB_OK;
}

static bool exhausted(const struct vb_zone *zone, const uint32_t *pages, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if ((uint64_t)zone->pages[pages[i]].version + 1 >= VB_VERSION_LIMIT)
			return true;
	return false;
}

/* Pages that leave, on their way to being ciphertext. */
struct batch {
	uint32_t count;
	uint32_t pages[VB_RUN];
	struct vb_cipher *cipher;
	struct vb_job *jobs;
};

static int seal_all(struct vb_cipher *cipher, const struct batch *batch)
{
	int status = vb_seal_begin(cipher, batch->jobs, batch->count);

	if (!status)
		status = vb_seal_finish(cipher);
	for (uint32_t i = 0; i < batch->count && !status; i++) /* before they stop counting as plaintext */
		vb_flush(batch->jobs[i].data, VB_PAGE_SIZE_BYTES);
	return status;
}

/* The pages of a batch are ciphertext from now on. */
static void departed(struct vb_area *area, const struct batch *batch)
{
	for (uint32_t i = 0; i < batch->count; i++) {
		area->zone.pages[batch->pages[i]].version = batch->jobs[i].version;
		vb_zone_depart(&area->zone, batch->pages[i]);
	}
	area->counts.evictions += batch->count;
	area->counts.bytes_encrypted += vb_offset(batch->count);
	vb_settled(area);
}

/*
 * The zone's next epoch, with its lock held throughout: a page of this batch has come to the end of its versions. With 48
 * bits that takes decades, so it is done in the simplest way: first the batch, and in the room that this makes, page after
 * page, all that is encrypted under the last key.
 */
static int rekey(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, struct batch *batch)
{
	struct vb_zone *zone = &area->zone;
	struct vb_cipher **slot = &lane->ciphers[area - window->areas], *old, *new = NULL;
	int status;

	while (area->ciphering && !atomic_load(&window->failed))
		vb_await(area);
	status = atomic_load(&window->failed) ? VB_FAILED : vb_cipher_for(window, lane, area, &old);
	if (status)
		return status;
	area->secret.epoch++;
	status = vb_cipher_create(&area->secret, &new);
	for (uint32_t i = 0; i < batch->count && !status; i++) {
		job_of(window, area, batch->pages[i], &batch->jobs[i]);
		batch->jobs[i].version = 1;
	}
	if (!status)
		status = seal_all(new, batch);
	if (status) {
		vb_cipher_destroy(new);
		return vb_fail(window, status, zone->first + batch->pages[0]);
	}
	vb_zone_lose(zone, batch->count);
	for (uint32_t page = 0; page < zone->count && !status; page++) {
		if (zone->pages[page].sealed)
			status = reseal(window, area, page, old, new);
		else
			zone->pages[page].version = 0; /* no message under the new key */
		if (status)
			vb_fail(window, status, zone->first + page);
	}
	vb_cipher_destroy(old);
	*slot = new;
	if (status)
		return status;
	departed(area, batch);
	batch->count = 0;
	area->counts.rekeys++;
	return VB_OK;
}

/* Takes at most `most` pages of standby to the provider. With the lock held. */
static int expel_begin(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, uint32_t most,
		       struct batch *batch)
{
	struct vb_zone *zone = &area->zone;
	int status;

	batch->jobs = lane->jobs;
	batch->count = vb_zone_expel(zone, most < VB_RUN ? most : VB_RUN, batch->pages);
	if (!batch->count)
		return VB_OK;
	if (exhausted(zone, batch->pages, batch->count)) {
		status = rekey(window, lane, area, batch);
		if (status)
			vb_settled(area); /* who waits for one of these pages finds that the window has failed */
		return status;
	}
	status = vb_cipher_for(window, lane, area, &batch->cipher);
	if (status)
		return status;
	for (uint32_t i = 0; i < batch->count; i++) {
		job_of(window, area, batch->pages[i], &batch->jobs[i]);
		batch->jobs[i].version++; /* one that the page never had */
	}
	area->ciphering++;
	pthread_mutex_unlock(&area->lock);
	status = vb_seal_begin(batch->cipher, batch->jobs, batch->count);
	pthread_mutex_lock(&area->lock);
	if (status) {
		area->ciphering--;
		vb_fail(window, status, zone->first + batch->pages[0]); /* the cipher has erased the pages */
	}
	return status;
}

static int expel_finish(struct vb_window *window, struct vb_area *area, struct batch *batch)
{
	struct vb_zone *zone = &area->zone;
	int status;

	if (!batch->count)
		return VB_OK;
	pthread_mutex_unlock(&area->lock);
	status = vb_seal_finish(batch->cipher);
	for (uint32_t i = 0; i < batch->count && !status; i++) /* before they stop counting as plaintext */
		vb_flush(batch->jobs[i].data, VB_PAGE_SIZE_BYTES);
	pthread_mutex_lock(&area->lock);
	area->ciphering--;
	if (status)
		return vb_fail(window, status, zone->first + batch->pages[0]);
	vb_zone_lose(zone, batch->count);
	departed(area, batch);
	return VB_OK;
}

/* A page that was to be moved out stays, or is found to be gone. */
static int not_moved(struct vb_window *window, struct vb_area *area, int status, uint32_t page)
{
	switch (status) {
	case -EBUSY:
		area->counts.busy++;
		vb_zone_keep(&area->zone, page);
		return VB_OK;
	case -ENOENT: /* this process dropped the page (MADV_DONTNEED): it reads as zero again */
		if (window->placed) /* and its frame is gone */
			return vb_fail(window, VB_UNPLACED, area->zone.first + page);
		vb_zone_forget(&area->zone, page);
		vb_zone_lose(&area->zone, 1);
		return VB_OK;
	default:
		return vb_fail(window, status, area->zone.first + page);
	}
}

/*
 * Moves the next victim and its neighbours, at most `most`, to standby. With the lock held. *out: how many were taken, pages
 * that proved to be pinned among them; *gone: how many of them are not in guest memory any more.
 */
static int demote(struct vb_window *window, struct vb_area *area, uint32_t most, uint32_t *out, uint32_t *gone)
{
	struct vb_zone *zone = &area->zone;
	uint32_t page = 0, count = vb_zone_demote(zone, most, &page), end = page + count;
	int status = VB_OK;

	*out = count;
	*gone = 0;
	while (page < end && !status) {
		size_t offset = vb_offset(zone->first + page), bytes = 0;
		uint32_t moved;

		pthread_mutex_unlock(&area->lock);
		status = vb_uffd_move_out(window->uffd, window->side + offset, window->guest + offset,
					  vb_offset(end - page), &bytes);
		pthread_mutex_lock(&area->lock);
		moved = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);
		for (uint32_t i = 0; i < moved; i++)
			vb_zone_park(zone, page + i);
		area->counts.demotions += moved;
		*gone += moved;
		page += moved;
		if (status) {
			*gone += status == -ENOENT;
			status = not_moved(window, area, status, page++);
		}
	}
	if (count)
		vb_settled(area);
	return status;
}

int vb_set_aside(struct vb_window *window, struct vb_area *area, uint32_t page)
{
	struct vb_zone *zone = &area->zone;
	size_t offset = vb_offset(zone->first + page), bytes = 0;
	int status;

	if (zone->pages[page].state != VB_FRESH && zone->pages[page].state != VB_MAIN)
		return VB_OK;
	vb_zone_hold(zone, page);
	pthread_mutex_unlock(&area->lock);
	status = vb_uffd_move_out(window->uffd, window->side + offset, window->guest + offset, VB_PAGE_SIZE_BYTES, &bytes);
	pthread_mutex_lock(&area->lock);
	if (!status)
		vb_zone_park(zone, page);
	else if (status == -EBUSY)
		vb_zone_release(zone, page);
	else
		status = not_moved(window, area, status, page);
	vb_settled(area);
	return status == -EBUSY ? VB_OK : status;
}

int vb_make_room(struct vb_window *window, struct vb_lane *lane, struct vb_area *area, uint32_t room)
{
	struct vb_zone *zone = &area->zone;
	uint32_t stuck = 0;
	int status = VB_OK;

	while (zone->plaintext + room > zone->goal && !status) {
		uint32_t over = zone->plaintext + room - zone->goal;
		struct batch batch;

		if (atomic_load(&window->failed))
			return VB_FAILED;
		if (zone->standby.count) {
			/* A few more than needed: so they reach the provider as a batch. */
			status = expel_begin(window, lane, area, over > BATCH ? over : BATCH, &batch);
			if (!status)
				status = expel_finish(window, area, &batch);
		} else if (stuck < zone->fresh.count + zone->main.count) {
			uint32_t out, gone;

			status = demote(window, area, over < VB_RUN ? over : VB_RUN, &out, &gone);
			stuck = gone ? 0 : stuck + out;
		} else if (!stuck && vb_zone_busy(zone)) {
			vb_await(area);
		} else {
			return VB_PINNED;
		}
	}
	if (!status)
		vb_zone_gain(zone, room);
	return status;
}

int vb_tend(struct vb_window *window, struct vb_lane *lane, struct vb_area *area)
{
	struct vb_zone *zone = &area->zone;
	uint32_t spare = vb_zone_spare(zone), least = window->handler_count < spare ? (uint32_t)window->handler_count : spare;
	uint32_t target = vb_zone_standby_target(zone), stuck = 0;
	struct batch batch = {0};
	int status, end;

	/* While a percentage rises there may be more than the goal: its own steps see to that. */
	if (area->open || zone->goal == zone->count || zone->plaintext > zone->goal ||
	    zone->goal - zone->plaintext >= least) /* a page for each handler */
		return VB_OK;
	status = expel_begin(window, lane, area, spare, &batch);
	if (status)
		return status;
	while (zone->standby.count < target && stuck < VB_RUN && !status && zone->fresh.count + zone->main.count) {
		uint32_t out, gone;

		status = demote(window, area, target - zone->standby.count < VB_RUN ? target - zone->standby.count : VB_RUN, &out,
				&gone);
		stuck = gone ? 0 : stuck + out;
	}
	end = expel_finish(window, area, &batch);
	return status ? status : end;
}
