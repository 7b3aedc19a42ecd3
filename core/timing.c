#include "timing.h"

#include <time.h>

#include "cipher.h"

#define LINE 64
/* Reads the target's page without reading a timed line: its translation is to be at hand when these are. */
#define UNTIMED_LINE 0

/* In an order that no prefetcher expects, and none beside another; with lines of 128 bytes, too, each in another set. */
static const uint16_t lines[VB_TIMED_LINES] = {37 * LINE, 13 * LINE, 53 * LINE, 5 * LINE,
					       45 * LINE, 21 * LINE, 61 * LINE, 29 * LINE};

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static inline uint8_t load(const uint8_t *address)
{
	return *(const volatile uint8_t *)address;
}

/* Each address depends on what was read before, which is 0: so the processor cannot read two at a time. */
static uint8_t read_in_turn(const uint8_t *page)
{
	uint8_t value = 0;

	for (size_t i = 0; i < VB_TIMED_LINES; i++)
		value = load(page + lines[i] + value);
	return value;
}

uint64_t vb_time_walk(const struct vb_walk *walk)
{
	const uint8_t *target = walk->memory + (size_t)walk->target * VB_PAGE_SIZE_BYTES;
	uint64_t start;

	(void)read_in_turn(target);
	(void)read_in_turn(target);
	for (unsigned round = 0; round < walk->rounds; round++)
		for (size_t i = 0; i < walk->count; i++) {
			const uint8_t *page = walk->memory + (size_t)walk->pages[i] * VB_PAGE_SIZE_BYTES;

			for (size_t line = 0; line < VB_TIMED_LINES; line++)
				(void)load(page + lines[line]);
		}
	if (walk->wait_ns)
		for (start = now(); now() - start < walk->wait_ns;)
			;
	(void)load(target + UNTIMED_LINE);
	(void)now(); /* the clock's own lines may have been evicted */
	start = now();
	/* A branch, so that no processor looks at the clock before it has read them all. */
	if (read_in_turn(target))
		return UINT64_MAX;
	return now() - start;
}
