/* A zone's percentage is changed; its pages are sampled, to choose one; what is counted of it. */
#include "window.h"

#include <string.h>

#include "status.h"
#include "window_internal.h"

/* One step towards a smaller window, with the lock held; *done when it is reached. */
static int shrink(struct vb_window *window, struct vb_area *area, uint32_t target, bool *done)
{
	struct vb_zone *zone = &area->zone;
	uint32_t next = zone->plaintext < zone->goal ? zone->plaintext : zone->goal;
	int status;

	zone->goal = next > target + VB_RUN ? next - VB_RUN : target;
	status = vb_make_room(window, &window->calls, area, 0);
	if (!status)
		zone->limit = zone->plaintext > zone->goal ? zone->plaintext : zone->goal;
	*done = !status && zone->limit == target;
	return status;
}

/* One step of a change, with the lock held. */
static int step(struct vb_window *window, struct vb_area *area, unsigned percent, bool *done)
{
	struct vb_zone *zone = &area->zone;
	uint32_t target = vb_zone_window(zone->count, percent);
	int status = VB_OK;

	if (atomic_load(&window->failed))
		return VB_FAILED;
	if (atomic_load(&window->closing))
		return VB_CLOSED;
	if (percent && zone->pinned && zone->pinned + VB_PIN_HEADROOM > target)
		return VB_PINNED;
	if (area->open && percent)
		status = vb_watch(window, area);
	else if (zone->limit <= target)
		*done = true;
	else
		status = shrink(window, area, target, done);
	if (*done) {
		zone->limit = zone->goal = target;
		area->percent = percent;
		zone->plaintext_max = zone->plaintext;
	} else if (status) {
		zone->limit = zone->goal = vb_zone_window(zone->count, area->percent);
	}
	return status;
}

/*
 * A zone at 0 percent is on its way to being open, unless it is sampled. With window.change held. Where no thread can be had for
 * that, it stays watched, and is no less right.
 */
static void reopen(struct vb_window *window, struct vb_area *area)
{
	bool wanted;

	pthread_mutex_lock(&area->lock);
	wanted = !area->percent && !area->open && !area->sample.on && !atomic_load(&window->failed);
	pthread_mutex_unlock(&area->lock);
	if (wanted)
		(void)vb_opener_start(window, area);
}

/* vb_enter for a call on one zone. */
static int enter_zone(struct vb_window *window, size_t index, struct vb_area **area)
{
	int status = vb_enter(window);

	if (!status && index >= window->zone_count) {
		vb_leave(window);
		status = VB_INVALID;
	}
	if (!status)
		*area = &window->areas[index];
	return status;
}

int vb_window_set_percent(struct vb_window *window, size_t index, unsigned percent)
{
	struct vb_area *area;
	bool done = false;
	int status = enter_zone(window, index, &area);

	if (status)
		return status;
	if (percent > 100) {
		vb_leave(window);
		return VB_INVALID;
	}
	pthread_mutex_lock(&window->change);
	vb_opener_stop(area);
	while (!done && !status) {
		pthread_mutex_lock(&window->calls.use);
		pthread_mutex_lock(&area->lock);
		status = step(window, area, percent, &done);
		pthread_mutex_unlock(&area->lock);
		pthread_mutex_unlock(&window->calls.use);
	}
	reopen(window, area); /* also where nothing has changed: it was on its way to being open */
	pthread_mutex_unlock(&window->change);
	vb_leave(window);
	return status;
}

int vb_window_sample(struct vb_window *window, size_t index, bool on)
{
	struct vb_area *area;
	int status = enter_zone(window, index, &area);

	if (status)
		return status;
	pthread_mutex_lock(&window->change);
	vb_opener_stop(area);
	pthread_mutex_lock(&area->lock);
	if (atomic_load(&window->failed)) {
		status = VB_FAILED;
	} else if (on) {
		vb_sample_start(&area->sample, area->zone.count);
		area->sample_began = vb_now_ns();
		if (area->open)
			status = vb_watch(window, area);
		/* Each is seen when it is touched next. */
		for (uint32_t page = 0; page < area->zone.count && !status; page++)
			if (vb_sampled(&area->sample, page))
				status = vb_set_aside(window, area, page);
	} else if (area->sample.on) {
		area->sample.on = false;
		area->sample_took = vb_now_ns() - area->sample_began;
	}
	pthread_mutex_unlock(&area->lock);
	reopen(window, area);
	pthread_mutex_unlock(&window->change);
	vb_leave(window);
	return status;
}

int vb_window_reuse(struct vb_window *window, size_t index, struct vb_reuse *out)
{
	struct vb_area *area;
	int status = enter_zone(window, index, &area);

	if (status)
		return status;
	pthread_mutex_lock(&area->lock);
	*out = (struct vb_reuse){
		.on = area->sample.on,
		.shift = area->sample.shift,
		.ns = area->sample.on ? vb_now_ns() - area->sample_began : area->sample_took,
		.touches = area->sample.touches,
	};
	memcpy(out->reuse, area->sample.reuse, sizeof out->reuse);
	pthread_mutex_unlock(&area->lock);
	vb_leave(window);
	return VB_OK;
}

int vb_window_stats(struct vb_window *window, size_t index, struct vb_stats *out)
{
	struct vb_area *area;
	int status = enter_zone(window, index, &area);

	if (status)
		return status;
	pthread_mutex_lock(&area->lock);
	*out = area->counts;
	out->pages = area->zone.count;
	out->percent = area->percent;
	out->open = area->open;
	out->window = area->zone.limit;
	out->plaintext = area->zone.plaintext;
	out->plaintext_max = area->zone.plaintext_max;
	out->standby = area->zone.standby.count;
	out->pinned = area->zone.pinned;
	out->pin_budget = area->pin_budget;
	if (area->open)
		out->plaintext = out->plaintext_max = vb_open_count(window, area);
	pthread_mutex_unlock(&area->lock);
	vb_leave(window);
	return VB_OK;
}
