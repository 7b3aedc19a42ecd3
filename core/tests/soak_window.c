/*
 * soak_window SECONDS [SEED]: random windows, one after the other, each used at random by several threads and by the
 * kernel for them while the percentages change. Contents are always right, and the invariant holds whenever the
 * kernel's page map is looked at. Some windows are placed: then each page keeps its frame.
 *
 * Thread t owns one cache line of every page, and the whole of each page whose number is t modulo SHARES; what it wrote
 * there last is told by a counter that it alone knows. So all threads meet in all pages, and no two in one byte.
 */
#define _GNU_SOURCE
#include <time.h>

#include "support.h"

enum { THREADS = 4, SHARES = THREADS + 3, LINE = 64, MOST_PAGES = 1500, MOST_ZONES = 4, SPAN = 24 };

struct round {
	struct vb_window *window;
	uint32_t pages;
	size_t zones;
	uint64_t *frames; /* of each page, where it is placed */
	uint32_t zone_pages[MOST_ZONES];
	atomic_bool stop;
	atomic_ulong operations;
};

struct worker {
	struct round *round;
	size_t index;
	uint64_t random;
	uint32_t *lines; /* counter of this thread's line in each page */
	uint32_t *whole; /* counter of each page that is all this thread's; 0 again where it was given back */
	uint32_t writes;
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	return *state ^= *state << 17;
}

static uint32_t below(uint64_t *state, uint32_t limit)
{
	return (uint32_t)(next_random(state) % limit);
}

/* What is at a place that was written `count` times: nothing before the first. */
static void pattern(uint8_t *out, size_t bytes, uint32_t place, uint32_t count)
{
	uint64_t state = ((uint64_t)place << 32 | count) * 0x9E3779B97F4A7C15u | 1;

	if (count == 0) {
		memset(out, 0, bytes);
		return;
	}
	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t value = next_random(&state);

		memcpy(out + i, &value, 8);
	}
}

static bool own_page(const struct worker *worker, uint32_t page)
{
	return page % SHARES == worker->index;
}

/* Guest memory is read and written in turn by this thread, by the kernel for it, and through the window's own calls. */
static void get(struct worker *worker, int ends[2], size_t offset, void *data, size_t bytes)
{
	uint8_t *guest = worker->round->window->guest + offset;

	switch (below(&worker->random, 3)) {
	case 0:
		CHECK(write(ends[1], guest, bytes) == (ssize_t)bytes);
		CHECK(read(ends[0], data, bytes) == (ssize_t)bytes);
		break;
	case 1:
		CHECK(vb_window_read(worker->round->window, offset, data, bytes) == VB_OK);
		break;
	default:
		memcpy(data, guest, bytes);
	}
}

static void put(struct worker *worker, int ends[2], size_t offset, const void *data, size_t bytes)
{
	uint8_t *guest = worker->round->window->guest + offset;

	switch (below(&worker->random, 3)) {
	case 0:
		CHECK(write(ends[1], data, bytes) == (ssize_t)bytes);
		CHECK(read(ends[0], guest, bytes) == (ssize_t)bytes);
		break;
	case 1:
		CHECK(vb_window_write(worker->round->window, offset, data, bytes) == VB_OK);
		break;
	default:
		memcpy(guest, data, bytes);
	}
}

static void use_line(struct worker *worker, int ends[2], uint32_t page)
{
	size_t offset = page * VB_PAGE_SIZE_BYTES + worker->index * LINE;
	uint32_t place = page * THREADS + (uint32_t)worker->index;
	uint8_t data[LINE], expected[LINE];

	get(worker, ends, offset, data, LINE);
	pattern(expected, LINE, place, worker->lines[page]);
	CHECK(memcmp(data, expected, LINE) == 0);
	if (below(&worker->random, 3)) {
		pattern(data, LINE, place, ++worker->lines[page]);
		put(worker, ends, offset, data, LINE);
	}
}

static void use_page(struct worker *worker, int ends[2], uint32_t page)
{
	static _Thread_local uint8_t data[VB_PAGE_SIZE_BYTES], expected[VB_PAGE_SIZE_BYTES];
	size_t offset = page * VB_PAGE_SIZE_BYTES;

	get(worker, ends, offset, data, sizeof data);
	pattern(expected, sizeof expected, ~page, worker->whole[page]);
	CHECK(memcmp(data, expected, sizeof data) == 0);
	if (below(&worker->random, 2)) {
		worker->whole[page] = ++worker->writes;
		pattern(data, sizeof data, ~page, worker->whole[page]);
		put(worker, ends, offset, data, sizeof data);
	}
}

/* A device reaches a page for a moment: it stays in guest memory, unless there are too many such pages. */
static void hold_page(struct worker *worker, uint32_t page)
{
	struct vb_window *window = worker->round->window;
	size_t offset = page * VB_PAGE_SIZE_BYTES;
	int status = vb_window_pin(window, offset, VB_PAGE_SIZE_BYTES);

	CHECK(status == VB_OK || status == VB_BUDGET);
	if (status)
		return;
	CHECK(present(window->guest + offset, 1) == 1);
	sched_yield();
	CHECK(present(window->guest + offset, 1) == 1);
	CHECK(vb_window_unpin(window, offset, VB_PAGE_SIZE_BYTES) == VB_OK);
}

static void give_back(struct worker *worker, uint32_t page)
{
	struct vb_window *window = worker->round->window;
	size_t offset = page * VB_PAGE_SIZE_BYTES;
	uint8_t byte[LINE];

	CHECK(vb_window_discard(window, offset, VB_PAGE_SIZE_BYTES) == VB_OK);
	/* In an open zone it stays as it is, and only this thread knows what it was. */
	CHECK(vb_window_read(window, offset, byte, sizeof byte) == VB_OK);
	for (size_t i = 0; i < sizeof byte; i++)
		if (byte[i])
			return;
	worker->whole[page] = 0;
}

/* Many pages in one call: more than a zone's smallest window, and over the zones' borders. */
static void use_span(struct worker *worker, uint32_t page)
{
	static _Thread_local uint8_t data[SPAN * VB_PAGE_SIZE_BYTES];
	uint32_t count = 1 + below(&worker->random, SPAN);
	uint8_t expected[LINE];

	if (count > worker->round->pages - page)
		count = worker->round->pages - page;
	CHECK(vb_window_read(worker->round->window, page * VB_PAGE_SIZE_BYTES, data, count * VB_PAGE_SIZE_BYTES) == VB_OK);
	for (uint32_t i = 0; i < count; i++) {
		if ((page + i) % SHARES < THREADS)
			continue;
		pattern(expected, LINE, (page + i) * THREADS + (uint32_t)worker->index, worker->lines[page + i]);
		CHECK(memcmp(data + i * VB_PAGE_SIZE_BYTES + worker->index * LINE, expected, LINE) == 0);
	}
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct round *round = worker->round;
	int ends[2];

	int cpus[2], count = two_cpus(cpus);

	stay_on(cpus[worker->index % (size_t)count]);
	CHECK(pipe(ends) == 0);
	for (unsigned long i = 0; !atomic_load(&round->stop); i++) {
		/* Now at random, now in a row, now a few pages again and again. */
		uint32_t page;

		switch (i / 300 % 3) {
		case 0:
			page = below(&worker->random, round->pages);
			break;
		case 1:
			page = (uint32_t)(i % round->pages);
			break;
		default:
			page = (uint32_t)(i / 300 * 31 + below(&worker->random, 40)) % round->pages;
		}
		if (below(&worker->random, 50) == 0)
			use_span(worker, page);
		else if (page % SHARES >= THREADS && below(&worker->random, 50) == 0)
			hold_page(worker, page);
		else if (own_page(worker, page) && below(&worker->random, 8) == 0)
			give_back(worker, page);
		else if (own_page(worker, page))
			use_page(worker, ends, page);
		else if (page % SHARES >= THREADS)
			use_line(worker, ends, page);
		atomic_fetch_add(&round->operations, 1);
	}
	close(ends[0]);
	close(ends[1]);
	return NULL;
}

static void change(struct round *round, uint64_t *random)
{
	static const unsigned edges[] = {0, 1, 50, 99, 100};
	struct vb_stats stats;
	size_t zone = below(random, (uint32_t)round->zones);
	unsigned percent = below(random, 2) ? below(random, 101) : edges[below(random, 5)];

	int status = vb_window_set_percent(round->window, zone, percent);

	CHECK(status == VB_OK || status == VB_PINNED);
	if (status)
		return;
	CHECK(vb_window_stats(round->window, zone, &stats) == VB_OK);
	CHECK(stats.percent == percent && stats.window == vb_zone_window(round->zone_pages[zone], percent));
	CHECK(stats.plaintext <= stats.window && stats.plaintext_max <= stats.window);
}

/* Each page has the frame that it had; one that is on its way may not be seen, if others use the window. */
static void check_frames(struct round *round, bool alone)
{
	for (uint32_t page = 0; round->frames && page < round->pages; page++) {
		uint64_t frame = frame_of(round->window, page);

		CHECK(frame == round->frames[page] || (!frame && !alone));
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned long run_round(uint64_t *random, double end)
{
	struct vb_zone_config zones[MOST_ZONES];
	struct round round = {.zones = 1 + below(random, MOST_ZONES)};
	struct worker workers[THREADS];
	pthread_t threads[THREADS];

	for (size_t i = 0; i < round.zones; i++) {
		/* Also zones that are smaller than the smallest window. */
		uint32_t pages = below(random, 4) ? 1 + below(random, MOST_PAGES / MOST_ZONES) : 1 + below(random, 70);

		zones[i] = (struct vb_zone_config){pages, below(random, 101), pages < 3 ? pages : 3};
		round.zone_pages[i] = pages;
		round.pages += pages;
	}
	if (below(random, 2) && geteuid() == 0) { /* else memory cannot be locked, perhaps */
		round.window = open_placed(zones, round.zones);
		CHECK((round.frames = calloc(round.pages, sizeof *round.frames)) != NULL);
		for (uint32_t page = 0; page < round.pages; page++)
			round.frames[page] = frame_of(round.window, page);
	} else {
		round.window = open_window(zones, round.zones);
	}
	for (size_t i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){&round, i, next_random(random) | 1, NULL, NULL, 0};
		CHECK((workers[i].lines = calloc(round.pages, sizeof *workers[i].lines)) != NULL);
		CHECK((workers[i].whole = calloc(round.pages, sizeof *workers[i].whole)) != NULL);
		CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
	}
	for (int i = 0; i < 400 && (now() < end || i < 20); i++) {
		change(&round, random);
		check_invariant(round.window);
		if (i % 16 == 0)
			check_frames(&round, false);
		usleep(below(random, 5000));
	}
	atomic_store(&round.stop, true);
	for (size_t i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	/* Nobody else now: every byte of every page. */
	for (uint32_t page = 0; page < round.pages; page++) {
		uint8_t data[VB_PAGE_SIZE_BYTES], expected[VB_PAGE_SIZE_BYTES] = {0};

		CHECK(vb_window_read(round.window, page * VB_PAGE_SIZE_BYTES, data, sizeof data) == VB_OK);
		if (page % SHARES < THREADS)
			pattern(expected, sizeof expected, ~page, workers[page % SHARES].whole[page]);
		else
			for (uint32_t i = 0; i < THREADS; i++)
				pattern(expected + i * LINE, LINE, page * THREADS + i, workers[i].lines[page]);
		CHECK(memcmp(data, expected, sizeof data) == 0);
	}
	check_invariant(round.window);
	await_quiet(round.window);
	check_frames(&round, true);
	free(round.frames);
	CHECK(vb_window_failure(round.window).status == VB_OK);
	vb_window_free(round.window);
	for (size_t i = 0; i < THREADS; i++) {
		free(workers[i].lines);
		free(workers[i].whole);
	}
	return atomic_load(&round.operations);
}

int main(int count, char **words)
{
	double seconds = count > 1 ? atof(words[1]) : 1;
	uint64_t random = count > 2 ? strtoull(words[2], NULL, 0) : (uint64_t)time(NULL);
	double end = now() + seconds;
	unsigned long operations = 0;
	unsigned rounds = 0;

	/* Told first, so that what fails can be run again. */
	printf("seed %#llx\n", (unsigned long long)random);
	fflush(stdout);
	random = random * 0x9E3779B97F4A7C15u | 1;
	do {
		operations += run_round(&random, end);
		rounds++;
	} while (now() < end);
	printf("%u windows, %lu operations\n", rounds, operations);
	CHECK(operations > 0);
	return 0;
}
