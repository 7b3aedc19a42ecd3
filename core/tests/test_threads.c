/* Many threads in one window, the kernel's own faults among them, while the percentages change. */
#define _GNU_SOURCE
#include "support.h"

enum { PAGES = 1024, THREADS = 4, ROUNDS = 6000 };

static struct vb_window *window;
static atomic_bool stop;

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	return *state ^= *state << 5;
}

/* Each thread owns a cache line of every page, with a counter that it alone knows. */
static void *worker(void *argument)
{
	size_t index = (size_t)argument;
	static uint32_t expected[THREADS][2 * PAGES];
	uint32_t random = 12345 + (uint32_t)index * 7919;
	int pipe_ends[2];

	CHECK(pipe(pipe_ends) == 0);
	for (int i = 0; i < ROUNDS; i++) {
		bool sequential = i / 500 % 2;
		uint32_t page = sequential ? (uint32_t)i % (2 * PAGES) : next_random(&random) % (2 * PAGES);
		size_t offset = page * VB_PAGE_SIZE_BYTES + index * 64;
		volatile uint32_t *cell = (volatile uint32_t *)(window->guest + offset);
		uint32_t value = 0;

		switch (i % 4) {
		case 0: /* the kernel reads guest memory */
			CHECK(write(pipe_ends[1], (const void *)(uintptr_t)cell, sizeof value) == sizeof value);
			CHECK(read(pipe_ends[0], &value, sizeof value) == sizeof value);
			break;
		case 1:
			CHECK(vb_window_read(window, offset, &value, sizeof value) == VB_OK);
			break;
		default:
			value = *cell;
		}
		CHECK(value == expected[index][page]);
		value++;
		expected[index][page]++;
		switch (i % 3) {
		case 0: /* the kernel writes guest memory */
			CHECK(write(pipe_ends[1], &value, sizeof value) == sizeof value);
			CHECK(read(pipe_ends[0], (void *)(uintptr_t)cell, sizeof value) == sizeof value);
			break;
		case 1:
			CHECK(vb_window_write(window, offset, &value, sizeof value) == VB_OK);
			break;
		default:
			*cell = value;
		}
	}
	close(pipe_ends[0]);
	close(pipe_ends[1]);
	return NULL;
}

static void *changer(void *argument)
{
	uint32_t random = 99;

	(void)argument;
	while (!atomic_load(&stop)) {
		struct vb_stats stats;
		size_t zone = next_random(&random) % 2;
		unsigned percent = next_random(&random) % 101;

		CHECK(vb_window_set_percent(window, zone, percent) == VB_OK);
		CHECK(vb_window_stats(window, zone, &stats) == VB_OK);
		CHECK(stats.percent == percent && stats.window == vb_zone_window(PAGES, percent));
		CHECK(stats.plaintext <= stats.window && stats.plaintext_max <= stats.window);
		usleep(2000);
	}
	return NULL;
}

int main(void)
{
	const struct vb_zone_config zones[] = {{PAGES, 80, 0}, {PAGES, 30, 0}};
	pthread_t threads[THREADS], other;

	window = open_window(zones, 2);
	CHECK(pthread_create(&other, NULL, changer, NULL) == 0);
	for (size_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
	for (int i = 0; i < 200; i++) {
		check_invariant(window);
		usleep(2000);
	}
	for (size_t i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	atomic_store(&stop, true);
	CHECK(pthread_join(other, NULL) == 0);
	check_invariant(window);
	vb_window_free(window);
	return 0;
}
