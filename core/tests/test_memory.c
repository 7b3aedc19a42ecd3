/* Guest memory consists of several mappings, and nobody notices where one ends. */
#include "support.h"

#include <sys/mman.h>

enum { STRIPE = 512, PAGES = 4 * STRIPE + 100 }; /* pages; the smallest stripe */

/* Mappings of this process that begin in the range. */
static unsigned mappings(const uint8_t *start, size_t bytes)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char *line = NULL;
	size_t size = 0;
	unsigned found = 0;

	CHECK(maps);
	while (getline(&line, &size, maps) > 0) {
		uintptr_t from = strtoull(line, NULL, 16);

		found += from >= (uintptr_t)start && from < (uintptr_t)start + bytes;
	}
	free(line);
	fclose(maps);
	return found;
}

/* One for each stripe, the last of which is short; so few that a large guest has enough of them, too. */
static void test_stripes(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){PAGES, 50, 0}, 1);
	uint8_t *large;

	CHECK(mappings(window->guest, window->bytes) == 5 && mappings(window->side, window->bytes) == 5);
	vb_window_free(window);
	CHECK(vb_map_memory((size_t)300 << 30, &large) == VB_OK && vb_stripe_memory(large, (size_t)300 << 30) == VB_OK);
	CHECK(mappings(large, (size_t)300 << 30) > 32 && mappings(large, (size_t)300 << 30) <= 64);
	munmap(large, (size_t)300 << 30);
}

/* Pages come in runs, from standby and from ciphertext, across the ends of mappings, in both directions. */
static void pass(struct vb_window *window, uint8_t value)
{
	for (size_t page = 0; page < PAGES; page++)
		window->guest[vb_offset((uint32_t)page)] = (uint8_t)(page + value);
	for (size_t page = PAGES; page--;)
		CHECK(window->guest[vb_offset((uint32_t)page)] == (uint8_t)(page + value));
	check_invariant(window);
}

static void test_runs(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){PAGES, 50, 0}, 1);

	pass(window, 1);
	CHECK(vb_window_set_percent(window, 0, 90) == VB_OK);
	pass(window, 2);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	await_open(window, 0);
	pass(window, 3);
	CHECK(vb_window_set_percent(window, 0, 75) == VB_OK);
	pass(window, 4);
	vb_window_free(window);
}

/* What is loaded comes from anywhere: the end of a stripe says nothing about it, nor does it about the stripe. */
static void test_loading(void)
{
	const size_t bytes = vb_offset(2 * STRIPE) + 5, stripe = vb_offset(STRIPE);
	uint8_t *data = malloc(bytes + stripe), *back = malloc(bytes);

	CHECK(data && back);
	for (size_t i = 0; i < bytes + stripe; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	for (size_t shift = 0; shift < stripe; shift += stripe / 3 + 1) {
		struct vb_window *window = open_window(&(struct vb_zone_config){PAGES, 50, 0}, 1);

		CHECK(vb_window_write(window, vb_offset(7), data + shift, bytes) == VB_OK);
		check_invariant(window);
		CHECK(vb_window_read(window, vb_offset(7), back, bytes) == VB_OK && !memcmp(back, data + shift, bytes));
		vb_window_free(window);
	}
	free(data);
	free(back);
}

/* Frames that were drawn go to the stripes, whose ends are elsewhere. */
static void test_placed(void)
{
	struct vb_window *window = open_placed((struct vb_zone_config[]){{STRIPE + 300, 0, 0}, {PAGES, 50, 0}}, 2);

	for (uint32_t page = 0; page < STRIPE + 300 + PAGES; page++)
		window->guest[vb_offset(page)] = (uint8_t)(page + 9);
	for (uint32_t page = 0; page < STRIPE + 300 + PAGES; page++)
		CHECK(window->guest[vb_offset(page)] == (uint8_t)(page + 9));
	check_invariant(window);
	vb_window_free(window);
}

int main(void)
{
	test_stripes();
	test_runs();
	test_loading();
	test_placed();
	return 0;
}
