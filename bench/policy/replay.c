/*
 * Replays page references through core/zone.c much as core/paging.c and core/evict.c do it, with nothing behind it: no
 * memory is moved and nothing encrypted. What differs: a page comes in alone (no fault-around), and there is one handler.
 */
#include <stdlib.h>

#include "zone.h"

/* Pages that are encrypted in one step where a fault waits for room: as in core/evict.c. */
#define BATCH 16

struct replay {
	uint64_t misses; /* a page was decrypted, or touched for the first time */
	uint64_t minor;  /* a page came back from standby */
	uint32_t plaintext_max;
	uint32_t broken; /* checks of the queues that failed */
};

static uint32_t demote(struct vb_zone *zone, uint32_t most)
{
	uint32_t page = 0;
	uint32_t run = vb_zone_demote(zone, most, &page);

	for (uint32_t i = 0; i < run; i++)
		vb_zone_park(zone, page + i);
	return run;
}

static void expel(struct vb_zone *zone, uint32_t most)
{
	uint32_t pages[VB_RUN];
	uint32_t count = vb_zone_expel(zone, most, pages);

	for (uint32_t i = 0; i < count; i++)
		vb_zone_depart(zone, pages[i]);
	vb_zone_lose(zone, count);
}

/* What the fault itself waits for. */
static bool make_room(struct vb_zone *zone)
{
	while (zone->plaintext + 1 > zone->goal) {
		if (zone->standby.count)
			expel(zone, BATCH);
		else if (!demote(zone, 1))
			return false;
	}
	return true;
}

/* What is done after the fault, so that the next one finds room. */
static void tend(struct vb_zone *zone)
{
	uint32_t spare = vb_zone_spare(zone), target = vb_zone_standby_target(zone), more = 1;

	if (!spare || zone->goal > zone->plaintext)
		return;
	expel(zone, spare);
	while (zone->standby.count < target && more)
		more = demote(zone, target - zone->standby.count < VB_RUN ? target - zone->standby.count : VB_RUN);
}

/* Whether a queue's links, states and count agree. */
static bool sound(const struct vb_zone *zone, const struct vb_queue *queue, enum vb_state state)
{
	uint32_t before = UINT32_MAX, count = 0;

	for (uint32_t page = queue->head; page != UINT32_MAX; page = zone->pages[page].next) {
		if (zone->pages[page].state != (uint64_t)state || zone->pages[page].previous != before)
			return false;
		before = page;
		if (++count > queue->count)
			return false;
	}
	return count == queue->count && queue->tail == before;
}

static bool consistent(const struct vb_zone *zone)
{
	return sound(zone, &zone->fresh, VB_FRESH) && sound(zone, &zone->main, VB_MAIN) &&
	       sound(zone, &zone->standby, VB_STANDBY) && zone->plaintext <= zone->limit &&
	       zone->fresh.count + zone->main.count + zone->standby.count == zone->plaintext;
}

/*
 * `references` are numbers below `pages`; at most `limit` of the pages are plaintext. With `check`, the queues are
 * looked through after each so many faults. 0, or -1 where there is no memory, a number is too large or no room.
 */
int vb_replay(const uint32_t *references, uint64_t count, uint32_t pages, uint32_t limit, uint64_t check,
	      struct replay *out)
{
	struct vb_page *table = calloc(pages, sizeof *table);
	struct vb_zone zone;
	int status = -1;

	*out = (struct replay){0};
	if (!table || !limit)
		goto out;
	vb_zone_init(&zone, 0, pages, limit, table);
	for (uint64_t i = 0; i < count; i++) {
		uint32_t page = references[i];

		if (page >= pages)
			goto out;
		switch ((enum vb_state)table[page].state) {
		case VB_FRESH:
		case VB_MAIN:
			continue; /* the CPU finds it, and nobody hears of it */
		case VB_STANDBY:
			out->minor++;
			break;
		default:
			if (!make_room(&zone))
				goto out;
			vb_zone_gain(&zone, 1);
			out->misses++;
		}
		vb_zone_call(&zone, page);
		vb_zone_admit(&zone, page);
		tend(&zone);
		if (check && (out->misses + out->minor) % check == 0)
			out->broken += !consistent(&zone);
	}
	out->plaintext_max = zone.plaintext_max;
	status = 0;
out:
	free(table);
	return status;
}
