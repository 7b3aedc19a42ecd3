/* A placed window: its pages have the frames that were chosen, and keep them whatever happens to the pages. */
#include "support.h"

#include <sys/mman.h>

#include "../uffd.h"

enum { PAGES = 300, OPEN = 100 }; /* few: memory that may be locked without privileges is 8 MiB */

static const struct vb_zone_config zones[] = {{PAGES - OPEN, 50, 8}, {OPEN, 0, 8}};
static uint64_t frames[PAGES];

static void note_frames(struct vb_window *window)
{
	for (uint32_t page = 0; page < PAGES; page++)
		frames[page] = frame_of(window, page);
}

static void check_frames(struct vb_window *window)
{
	await_quiet(window);
	for (uint32_t page = 0; page < PAGES; page++)
		CHECK(frame_of(window, page) == frames[page]);
	check_invariant(window);
}

static void test_frames(void)
{
	struct vb_window *window = open_placed(zones, 2);
	static uint8_t data[PAGES * VB_PAGE_SIZE_BYTES], found[sizeof data];

	note_frames(window);
	for (uint32_t page = 0; page < PAGES; page++) {
		CHECK(!frames[page] || frames[page] % COLOURS == 1);
		for (uint32_t other = 0; other < page; other++)
			CHECK(!frames[page] || frames[page] != frames[other]);
	}
	/* Nothing is in guest memory but the open zone, which the kernel has, and needs no frame for. */
	CHECK(present(window->guest, PAGES - OPEN) == 0 && present(window->guest + vb_offset(PAGES - OPEN), OPEN) == OPEN);
	CHECK(vb_window_read(window, 0, found, sizeof found) == VB_OK);
	CHECK(memcmp(found, data, sizeof found) == 0);
	check_frames(window);

	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (uint8_t)(i * 31 + i / VB_PAGE_SIZE_BYTES);
	CHECK(vb_window_write(window, 0, data, sizeof data) == VB_OK);
	check_frames(window);
	for (unsigned percent = 100; percent; percent -= 20) {
		CHECK(vb_window_set_percent(window, 0, percent) == VB_OK);
		CHECK(vb_window_set_percent(window, 1, percent) == VB_OK);
		for (uint32_t page = 0; page < PAGES; page++)
			CHECK(window->guest[vb_offset(page * 7 % PAGES)] == data[vb_offset(page * 7 % PAGES)]);
		check_frames(window);
	}
	CHECK(vb_window_read(window, 0, found, sizeof found) == VB_OK && memcmp(found, data, sizeof found) == 0);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	await_open(window, 0);
	check_frames(window);
	CHECK(present(window->guest, PAGES - OPEN) == PAGES - OPEN);
	CHECK(vb_window_read(window, 0, found, sizeof found) == VB_OK && memcmp(found, data, sizeof found) == 0);
	vb_window_free(window);
}

/* What is dropped reads as zeros, whatever it was, and is zeros where it lies. */
static void test_dropped(void)
{
	const uint32_t count = PAGES - OPEN;
	struct vb_window *window = open_placed(zones, 2);
	uint32_t kinds[VB_FIXED + 1] = {0};
	struct vb_stats stats;

	note_frames(window);
	memset(window->guest, 7, vb_offset(count - 50)); /* fifty are never touched */
	await_quiet(window);
	for (uint32_t page = 0; page < count; page++)
		kinds[entry_of(window, page).state]++;
	CHECK(kinds[VB_ABSENT] && kinds[VB_ENCRYPTED] && kinds[VB_STANDBY] && kinds[VB_FRESH] + kinds[VB_MAIN]);
	CHECK(vb_window_discard(window, 0, vb_offset(count)) == VB_OK);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.plaintext == 0 && stats.discarded >= count - 50);
	check_frames(window);
	for (size_t i = 0; i < vb_offset(count); i++)
		CHECK(window->side[i] == 0);
	for (size_t i = 0; i < vb_offset(count); i += 512)
		CHECK(window->guest[i] == 0);
	check_frames(window);
	/* All of the zone in guest memory before it opens, also what is absent: the kernel would map other frames. */
	CHECK(vb_window_discard(window, 0, vb_offset(count)) == VB_OK);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	await_open(window, 0);
	CHECK(present(window->guest, count) == count);
	check_frames(window);
	vb_window_free(window);
}

static void test_pins(void)
{
	struct vb_window *window = open_placed(zones, 2);

	note_frames(window);
	CHECK(vb_window_pin(window, 0, vb_offset(3)) == VB_OK);
	CHECK(vb_window_pin(window, vb_offset(PAGES - 3), vb_offset(3)) == VB_OK);
	CHECK(vb_window_set_percent(window, 1, 60) == VB_OK);
	memset(window->guest, 1, window->bytes);
	check_frames(window);
	CHECK(vb_window_unpin(window, 0, vb_offset(3)) == VB_OK);
	vb_window_free(window);
}

/* A frame that is gone stops the window: the kernel's next one would be of any colour. */
static void test_lost_frame(void)
{
	struct vb_window *window = open_placed(zones, 2);
	uint8_t byte;

	CHECK(madvise(window->side + vb_offset(5), VB_PAGE_SIZE_BYTES, 24 /* MADV_DONTNEED_LOCKED */) == 0);
	CHECK(vb_window_read(window, vb_offset(5), &byte, 1) == VB_UNPLACED);
	CHECK(vb_window_failure(window).status == VB_UNPLACED && vb_window_failure(window).page == 5);
	vb_window_free(window);

	window = open_placed(zones, 2);
	memset(window->guest, 1, vb_offset(10));
	CHECK(madvise(window->guest + vb_offset(7), VB_PAGE_SIZE_BYTES, 24) == 0);
	CHECK(vb_window_discard(window, 0, vb_offset(10)) == VB_UNPLACED);
	vb_window_free(window);
}

static void test_wrong_calls(void)
{
	struct vb_config config = {.zones = zones, .zone_count = 2, .key = test_key, .instance = test_instance, .grace_ms = -1,
				   .placed = true};
	struct vb_window *window = NULL;
	struct vb_stats stats;
	uint8_t keep[2] = {0xff, 0xff};
	size_t missing = 0;
	void *drawn;

	CHECK(vb_window_create(&config, &window) == VB_OK);
	CHECK(vb_window_write(window, 0, keep, 1) == VB_UNPLACED && vb_window_stats(window, 0, &stats) == VB_UNPLACED);
	CHECK(vb_window_settle(window) == VB_UNPLACED);
	CHECK(vb_window_keep(window, keep, 2, &missing) == VB_INVALID); /* nothing was drawn */
	CHECK(vb_window_draw(window, 0, &drawn) == VB_INVALID && vb_window_draw(window, SIZE_MAX, &drawn) == VB_INVALID);
	CHECK(vb_window_draw(window, 10, &drawn) == VB_OK && present(drawn, 10) == 10);
	CHECK(vb_window_keep(window, keep, 1, &missing) == VB_INVALID && missing == PAGES);
	CHECK(vb_window_keep(window, keep, 2, &missing) == VB_OK && missing == PAGES - 10); /* bits beyond are nobody's */
	CHECK(vb_window_keep(window, keep, 2, &missing) == VB_INVALID && missing == PAGES - 10); /* they are not there any more */
	CHECK(vb_window_settle(window) == VB_UNPLACED);
	vb_window_close(window); /* while it is being placed */
	CHECK(vb_window_draw(window, 1, &drawn) == VB_CLOSED);
	vb_window_free(window);

	window = open_placed(zones, 2);
	CHECK(vb_window_draw(window, 1, &drawn) == VB_INVALID && vb_window_settle(window) == VB_INVALID);
	vb_window_free(window);
	window = open_window(zones, 2);
	CHECK(vb_window_draw(window, 1, &drawn) == VB_INVALID);
	vb_window_free(window);
}

int main(void)
{
	test_frames();
	test_dropped();
	test_pins();
	test_lost_frame();
	test_wrong_calls();
	return 0;
}
