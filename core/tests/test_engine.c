/* What makes the window an engine: standby, new keys, pages pinned and given back, handlers. */
#define _GNU_SOURCE
#include "support.h"

/* A page that went to standby comes back without a cipher, and stays longer than those that were not wanted. */
static void test_standby(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){2000, 50, 0}, 1);
	struct vb_stats before, after;
	uint32_t page;

	for (uint32_t i = 0; i < 2000; i++)
		memset(page_of(window, i), (int)i, 8);
	await_quiet(window);
	before = stats_of(window, 0);
	CHECK(before.standby >= 50 && before.standby <= 150 && before.demotions >= before.evictions);
	page = page_in_state(window, VB_STANDBY);
	CHECK(*page_of(window, page) == (uint8_t)page);
	after = stats_of(window, 0);
	CHECK(after.standby_hits == before.standby_hits + 1 && after.bytes_decrypted == before.bytes_decrypted);
	CHECK(entry_of(window, page).state == VB_MAIN);
	check_invariant(window);
	vb_window_free(window);
}

/* Neighbours are brought in together where faults come one after the other, and not where they do not. */
static void test_sequential(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){8000, 50, 0}, 1);
	struct vb_stats before, after;

	memset(window->guest, 1, window->bytes);
	before = stats_of(window, 0);
	for (uint32_t i = 0; i < 8000; i++)
		CHECK(*page_of(window, i) == 1);
	after = stats_of(window, 0);
	CHECK(after.faults - before.faults < 8000 / 20);
	before = after;
	for (uint32_t i = 0; i < 3000; i++)
		CHECK(*page_of(window, i * 2654435761u % 8000) == 1);
	after = stats_of(window, 0);
	CHECK(after.bytes_decrypted - before.bytes_decrypted < 2 * vb_offset((uint32_t)(after.faults - before.faults)));
	vb_window_free(window);
}

/* --- keys ---------------------------------------------------------------------------------------------------- */

/* Before a version could repeat, all that is encrypted gets a new key. */
static void test_rekey(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){600, 80, 0}, 1);
	struct vb_stats stats;
	uint8_t old[VB_PAGE_SIZE_BYTES];
	uint32_t page, other;

	for (uint32_t i = 0; i < 600; i++)
		memset(page_of(window, i), (int)i, VB_PAGE_SIZE_BYTES);
	await_quiet(window);
	other = page_in_state(window, VB_ENCRYPTED);
	memcpy(old, window->side + vb_offset(other), sizeof old);
	page = page_in_state(window, VB_FRESH);
	pthread_mutex_lock(&window->areas[0].lock);
	window->pages[page].version = VB_VERSION_LIMIT - 2;
	pthread_mutex_unlock(&window->areas[0].lock);
	for (int round = 0; round < 3; round++) /* out, in, and out again */
		for (uint32_t i = 0; i < 600; i++)
			CHECK(*page_of(window, i) == (uint8_t)i);
	stats = stats_of(window, 0);
	CHECK(stats.rekeys == 1 && window->areas[0].secret.epoch == 1);
	CHECK(entry_of(window, page).version < 10 && entry_of(window, other).version < 10);
	CHECK(memcmp(old, window->side + vb_offset(other), sizeof old));
	check_invariant(window);
	vb_window_free(window);
}

/* --- pins ---------------------------------------------------------------------------------------------------- */

static void test_pins(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){800, 50, 100}, 1);
	const size_t many = vb_offset(60), at = vb_offset(100);
	struct vb_stats stats;

	memset(window->guest, 5, window->bytes);
	CHECK(vb_window_pin(window, at + 1, many) == VB_INVALID && vb_window_pin(window, at, 5) == VB_INVALID);
	CHECK(vb_window_pin(window, window->bytes, vb_offset(1)) == VB_INVALID);
	CHECK(vb_window_pin(window, at, many) == VB_OK);
	CHECK(vb_window_pin(window, at + vb_offset(10), vb_offset(20)) == VB_OK); /* a second time */
	stats = stats_of(window, 0);
	CHECK(stats.pinned == 60 && stats.pin_budget == 100);
	CHECK(vb_window_pin(window, vb_offset(300), vb_offset(41)) == VB_BUDGET);
	CHECK(stats_of(window, 0).pinned == 60); /* none of those */
	for (int round = 0; round < 3; round++)
		for (uint32_t i = 0; i < 800; i++)
			CHECK(*page_of(window, i) == 5);
	CHECK(present(window->guest + at, 60) == 60);
	check_invariant(window);

	/* A percentage that leaves no room beside them is refused, and nothing changes; the next lower one is not. */
	CHECK(vb_window_set_percent(window, 0, 91) == VB_PINNED);
	stats = stats_of(window, 0);
	CHECK(stats.percent == 50 && stats.window == 400 && stats.pinned == 60);
	CHECK(vb_window_set_percent(window, 0, 90) == VB_OK);
	CHECK(present(window->guest + at, 60) == 60);
	check_invariant(window);
	CHECK(vb_window_pin(window, 0, vb_offset(10)) == VB_BUDGET); /* the window's headroom, not the budget */

	/* They stay pinned while the zone is the kernel's, and after. */
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	await_open(window, 0);
	CHECK(vb_window_pin(window, 0, vb_offset(1)) == VB_OK && stats_of(window, 0).pinned == 61);
	CHECK(vb_window_unpin(window, 0, vb_offset(1)) == VB_OK);
	CHECK(vb_window_set_percent(window, 0, 90) == VB_OK);
	CHECK(present(window->guest + at, 60) == 60 && stats_of(window, 0).pinned == 60);
	check_invariant(window);

	CHECK(vb_window_unpin(window, at, many) == VB_OK);
	CHECK(stats_of(window, 0).pinned == 20); /* those that were pinned twice */
	CHECK(vb_window_unpin(window, at + vb_offset(10), vb_offset(20)) == VB_OK && stats_of(window, 0).pinned == 0);
	CHECK(vb_window_pin(window, at + vb_offset(5), vb_offset(1)) == VB_OK);
	CHECK(vb_window_unpin(window, at, many) == VB_INVALID); /* most are not pinned; the one that is is let go */
	CHECK(stats_of(window, 0).pinned == 0);
	CHECK(vb_window_set_percent(window, 0, 95) == VB_OK);
	for (uint32_t i = 0; i < 800; i++)
		CHECK(*page_of(window, i) == 5);
	check_invariant(window);
	vb_window_free(window);
}

/* --- given back ---------------------------------------------------------------------------------------------- */

/* Wherever pages are: they read as zeros next, cost no cipher, and leave room. */
static void test_discard(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){1000, 50, 8}, 1);
	struct vb_stats before, after;
	uint64_t version;
	uint32_t page;

	memset(window->guest, 6, window->bytes);
	CHECK(vb_window_pin(window, vb_offset(500), vb_offset(2)) == VB_OK);
	await_quiet(window);
	page = page_in_state(window, VB_ENCRYPTED);
	version = entry_of(window, page).version;
	before = stats_of(window, 0);
	CHECK(before.standby && vb_window_discard(window, 1, vb_offset(1)) == VB_INVALID);
	CHECK(vb_window_discard(window, 0, window->bytes) == VB_OK);
	after = stats_of(window, 0);
	CHECK(after.plaintext == 2 && after.standby == 0 && after.discarded == 998);
	CHECK(after.bytes_decrypted == before.bytes_decrypted && after.bytes_encrypted == before.bytes_encrypted);
	CHECK(present(window->guest, 1000) == 2 && present(window->side, 1000) == 0);
	check_invariant(window);
	for (uint32_t i = 0; i < 1000; i++)
		CHECK(*page_of(window, i) == (i == 500 || i == 501 ? 6 : 0));
	CHECK(entry_of(window, page).version >= version); /* a nonce is never used again */
	CHECK(vb_window_unpin(window, vb_offset(500), vb_offset(2)) == VB_OK);

	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	await_open(window, 0);
	memset(window->guest, 7, window->bytes);
	CHECK(vb_window_discard(window, vb_offset(10), vb_offset(100)) == VB_OK);
	CHECK(stats_of(window, 0).discarded == after.discarded && *page_of(window, 10) == 7); /* the kernel keeps them */
	vb_window_free(window);
}

/* --- handlers ------------------------------------------------------------------------------------------------ */

struct visit {
	struct vb_window *window;
	int cpu;
};

static void *visit(void *argument)
{
	const struct visit *visit = argument;

	stay_on(visit->cpu);
	for (uint32_t i = 0; i < 8000; i++)
		*page_of(visit->window, i * 2654435761u % 4000) += 1;
	return NULL;
}

static bool enlisted(struct vb_window *window, size_t handler)
{
	bool answer;

	pthread_mutex_lock(&window->roster);
	answer = window->handlers[handler].enlisted && !atomic_load(&window->handlers[handler].dismissed);
	pthread_mutex_unlock(&window->roster);
	return answer;
}

/* Faults are answered where they happen: the handler of their CPU is enlisted, and others are dismissed in time. */
static void test_handlers(void)
{
	int cpus[2], found = two_cpus(cpus);
	struct vb_window *window;

	if (found < 2) {
		puts("one CPU: handlers were not tested");
		return;
	}
	window = open_configured((struct vb_config){.handler_cpus = cpus, .handler_count = 2},
				 &(struct vb_zone_config){4000, 80, 0});
	for (int turn = 1; turn >= 0; turn--) {
		struct visit one = {window, cpus[turn]};
		pthread_t thread;

		CHECK(pthread_create(&thread, NULL, visit, &one) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
		CHECK(enlisted(window, (size_t)turn) && !enlisted(window, (size_t)!turn));
	}
	check_invariant(window);
	CHECK(stats_of(window, 0).handler_ns > 0);
	vb_window_free(window);
}

/* --- sampling ------------------------------------------------------------------------------------------------ */

/* The distances of reuse are those of the accesses, whatever the percentage, and also where the zone is open. */
static void test_sampling(unsigned percent)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){16000, percent, 0}, 1);
	struct vb_reuse reuse;
	uint64_t near = 0;

	for (uint32_t i = 0; i < 16000; i++)
		*page_of(window, i) = (uint8_t)i;
	CHECK(vb_window_sample(window, 1, true) == VB_INVALID);
	CHECK(vb_window_sample(window, 0, true) == VB_OK);
	for (int round = 0; round < 12; round++) /* a quarter of the pages, again and again */
		for (uint32_t i = 0; i < 4000; i++)
			CHECK(*page_of(window, i * 7 % 4000) == (uint8_t)(i * 7 % 4000));
	CHECK(vb_window_sample(window, 0, false) == VB_OK);
	CHECK(vb_window_reuse(window, 0, &reuse) == VB_OK);
	CHECK(!reuse.on && reuse.ns > 0 && reuse.shift == 5);
	/* Twelve touches of one page in 2^5, but for the first round of each. */
	CHECK(reuse.touches << reuse.shift > 12 * 4000 * 8 / 10 && reuse.touches << reuse.shift < 12 * 4000 * 12 / 10);
	for (unsigned i = 20; i < 30; i++)
		near += reuse.reuse[i];
	CHECK(near > reuse.touches * 10 / 12 * 9 / 10);
	check_invariant(window);
	if (!percent)
		await_open(window, 0);
	for (uint32_t i = 0; i < 16000; i++)
		CHECK(*page_of(window, i) == (uint8_t)i);
	vb_window_free(window);
}

/* From one page to the other, where the processor can, in one instruction that needs both at once. */
static void move_word(void *to, const void *from)
{
#ifdef __x86_64__
	__asm__ volatile("movsq" : "+D"(to), "+S"(from) : : "memory");
#else
	memcpy(to, from, 8);
#endif
}

/* Sampling takes no page away that an instruction needs together with another. */
static void test_sampled_pairs(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){2000, 50, 0}, 1);
	uint64_t faults;
	uint32_t pair[2] = {0}, found = 0;

	memset(window->guest, 1, window->bytes);
	CHECK(vb_window_sample(window, 0, true) == VB_OK);
	for (uint32_t page = 0; found < 2; page++)
		if (vb_sampled(&window->areas[0].sample, page))
			pair[found++] = page;
	for (int i = 0; i < 100000; i++)
		move_word(page_of(window, pair[i % 2]), page_of(window, pair[!(i % 2)]));
	faults = stats_of(window, 0).faults;
	for (int i = 0; i < 100000; i++)
		move_word(page_of(window, pair[i % 2]), page_of(window, pair[!(i % 2)]));
	CHECK(stats_of(window, 0).faults - faults < 10);
	vb_window_free(window);
}

/* Every fault is in the histogram. */
static void test_histogram(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){500, 50, 0}, 1);
	struct vb_stats stats;
	uint64_t sum = 0;

	memset(window->guest, 1, window->bytes);
	for (uint32_t i = 0; i < 500; i++)
		CHECK(*page_of(window, i) == 1);
	await_quiet(window);
	stats = stats_of(window, 0);
	for (size_t i = 0; i < VB_HISTOGRAM; i++)
		sum += stats.histogram[i];
	CHECK(sum >= stats.faults && stats.faults > 10);
	vb_window_free(window);
}

int main(void)
{
	test_standby();
	test_sequential();
	test_rekey();
	test_pins();
	test_discard();
	test_handlers();
	test_histogram();
	test_sampled_pairs();
	test_sampling(50);
	test_sampling(95);
	test_sampling(0);
	return 0;
}
