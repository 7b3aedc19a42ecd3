#include "zone.h"

#include <assert.h>
#include <string.h>

uint32_t vb_zone_window(uint32_t pages, unsigned percent)
{
	uint32_t window = (uint32_t)((uint64_t)(100 - percent) * pages / 100);

	if (window < VB_MINIMUM_WINDOW)
		window = VB_MINIMUM_WINDOW;
	return window < pages ? window : pages;
}

void vb_zone_init(struct vb_zone *zone, uint32_t first, uint32_t pages, unsigned percent, uint32_t *queue)
{
	memset(zone, 0, sizeof *zone);
	zone->first = first;
	zone->pages = pages;
	zone->percent = percent;
	zone->open = percent == 0;
	zone->limit = vb_zone_window(pages, percent);
	zone->queue = queue;
	for (unsigned i = 0; i < VB_STREAMS; i++)
		zone->streams[i].next = UINT32_MAX;
}

void vb_zone_gain(struct vb_zone *zone, uint32_t pages)
{
	zone->plaintext += pages;
	assert(zone->plaintext <= zone->limit);
	if (zone->plaintext > zone->plaintext_max)
		zone->plaintext_max = zone->plaintext;
}

void vb_zone_lose(struct vb_zone *zone, uint32_t pages)
{
	assert(zone->plaintext >= pages);
	zone->plaintext -= pages;
}

static uint32_t place(const struct vb_zone *zone, uint32_t offset)
{
	uint64_t index = (uint64_t)zone->head + offset;

	return (uint32_t)(index < zone->pages ? index : index - zone->pages);
}

void vb_zone_push(struct vb_zone *zone, uint32_t page, uint32_t count)
{
	assert(zone->count + count <= zone->pages);
	for (uint32_t i = 0; i < count; i++)
		zone->queue[place(zone, zone->count++)] = page + i;
}

uint32_t vb_zone_peek(const struct vb_zone *zone, uint32_t most, uint32_t *page)
{
	uint32_t run = 0;

	if (!zone->count)
		return 0;
	*page = zone->queue[zone->head];
	while (run < most && run < zone->count && zone->queue[place(zone, run)] == *page + run)
		run++;
	return run;
}

void vb_zone_drop(struct vb_zone *zone, uint32_t count)
{
	assert(count <= zone->count);
	zone->head = place(zone, count);
	zone->count -= count;
}

void vb_zone_rotate(struct vb_zone *zone)
{
	uint32_t page = zone->queue[zone->head];

	vb_zone_drop(zone, 1);
	vb_zone_push(zone, page, 1);
}

uint32_t vb_zone_expect(struct vb_zone *zone, uint32_t page, struct vb_stream **stream)
{
	for (unsigned i = 0; i < VB_STREAMS; i++) {
		struct vb_stream *candidate = &zone->streams[i];

		if (candidate->next == page) {
			*stream = candidate;
			return candidate->run * 2 < VB_RUN ? candidate->run * 2 : VB_RUN;
		}
	}
	*stream = &zone->streams[zone->oldest];
	zone->oldest = (zone->oldest + 1) % VB_STREAMS;
	return 1;
}
