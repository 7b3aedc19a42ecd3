/* What the C tests share: they see the window from inside, which the product's interface does not allow. */
#ifndef VAMBRACE_TEST_SUPPORT_H
#define VAMBRACE_TEST_SUPPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../status.h"
#include "../window_internal.h"

#define CHECK(condition)                                                                        \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                                \
		}                                                                               \
	} while (0)

static const uint8_t test_key[VB_REALM_KEY_BYTES] = "a key for tests, 32 bytes long.";
static const uint8_t test_instance[VB_INSTANCE_BYTES] = "instance 0 test";

/* At most two CPUs that this process may use, in order; gives their number. */
static inline int two_cpus(int cpus[2])
{
	cpu_set_t allowed;
	int found = 0;

	CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
	for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[found++] = cpu;
	return found;
}

static inline void stay_on(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
}

static inline struct vb_window *create(const struct vb_zone_config *zones, size_t count, int grace_ms, bool placed)
{
	int cpus[2];
	struct vb_config config = {
		.handler_cpus = cpus,
		.handler_count = (size_t)two_cpus(cpus),
		.zones = zones,
		.zone_count = count,
		.key = test_key,
		.instance = test_instance,
		.grace_ms = grace_ms,
		.placed = placed,
	};
	struct vb_window *window = NULL;
	int status = vb_window_create(&config, &window);

	if (status)
		fprintf(stderr, "vb_window_create: %s\n", vb_status_message(status));
	CHECK(status == VB_OK);
	return window;
}

static inline struct vb_window *open_with_grace(const struct vb_zone_config *zones, size_t count, int grace_ms)
{
	return create(zones, count, grace_ms, false);
}

static inline struct vb_window *open_window(const struct vb_zone_config *zones, size_t count)
{
	return open_with_grace(zones, count, -1);
}

/* The number of the page frame at an address; 0: there is none, or this process may not see it. */
static inline uint64_t frame_at(const void *address)
{
	uint64_t entry = 0;
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	CHECK(map >= 0);
	CHECK(pread(map, &entry, sizeof entry, (off_t)((uintptr_t)address / VB_PAGE_SIZE_BYTES * sizeof entry)) == sizeof entry);
	close(map);
	return entry >> 63 ? entry & (((uint64_t)1 << 55) - 1) : 0;
}

enum { DRAW = 500, COLOURS = 2 };

/* A placed window, of frames of colour 1 of COLOURS, or, where their numbers are hidden, of every second one. */
static inline struct vb_window *open_placed(const struct vb_zone_config *zones, size_t count)
{
	struct vb_window *window = create(zones, count, -1, true);
	size_t missing = 1;

	while (missing) {
		uint8_t keep[(DRAW + 7) / 8] = {0};
		void *drawn;

		CHECK(vb_window_draw(window, DRAW, &drawn) == VB_OK);
		for (size_t page = 0; page < DRAW; page++) {
			uint64_t frame = frame_at((uint8_t *)drawn + page * VB_PAGE_SIZE_BYTES);

			if ((frame ? frame : page) % COLOURS == 1)
				keep[page / 8] |= (uint8_t)(1 << page % 8);
		}
		CHECK(vb_window_keep(window, keep, sizeof keep, &missing) == VB_OK);
	}
	CHECK(vb_window_settle(window) == VB_OK);
	return window;
}

static inline uint8_t *page_of(struct vb_window *window, uint32_t page)
{
	return window->guest + vb_offset(page);
}

static inline struct vb_stats stats_of(struct vb_window *window, size_t zone)
{
	struct vb_stats stats;

	CHECK(vb_window_stats(window, zone, &stats) == VB_OK);
	return stats;
}

static inline struct vb_window *open_configured(struct vb_config config, const struct vb_zone_config *zone)
{
	struct vb_window *window = NULL;

	config.zones = zone;
	config.zone_count = 1;
	config.key = test_key;
	config.instance = test_instance;
	config.grace_ms = -1;
	CHECK(vb_window_create(&config, &window) == VB_OK);
	return window;
}

/* The frame of a page of a placed window, in guest memory or aside; 0: it is on its way, or hidden. */
static inline uint64_t frame_of(struct vb_window *window, uint32_t page)
{
	uint64_t frame = frame_at(window->guest + vb_offset(page));

	return frame ? frame : frame_at((const uint8_t *)vb_window_side(window) + vb_offset(page));
}

/* What the window knows of a page, when it is where it goes. */
static inline struct vb_page entry_of(struct vb_window *window, uint32_t page)
{
	struct vb_area *area = vb_area_of(window, page);
	struct vb_page entry;

	pthread_mutex_lock(&area->lock);
	while (window->pages[page].state == VB_COMING || window->pages[page].state == VB_LEAVING)
		vb_await(area);
	entry = window->pages[page];
	pthread_mutex_unlock(&area->lock);
	return entry;
}

/* The first page in this state; there is one. */
static inline uint32_t page_in_state(struct vb_window *window, enum vb_state state)
{
	uint32_t page = 0;

	while (entry_of(window, page).state != state)
		CHECK(++page < window->bytes / VB_PAGE_SIZE_BYTES);
	return page;
}

/* Until nothing is on its way: the handlers evict ahead of need when they have answered. */
static inline void await_quiet(struct vb_window *window)
{
	for (size_t i = 0; i < window->zone_count; i++) {
		struct vb_area *area = &window->areas[i];

		pthread_mutex_lock(&area->lock);
		for (uint32_t page = 0; page < area->zone.count; page++)
			while (area->ciphering || area->zone.pages[page].state == VB_COMING ||
			       area->zone.pages[page].state == VB_LEAVING) {
				vb_await(area);
				page = 0;
			}
		pthread_mutex_unlock(&area->lock);
	}
}

/* Until a zone that was set to 0 percent is the kernel's. */
static inline void await_open(struct vb_window *window, size_t zone)
{
	struct vb_stats stats = {0};

	for (int i = 0; i < 10000 && !stats.open; i++) {
		CHECK(vb_window_stats(window, zone, &stats) == VB_OK);
		usleep(1000);
	}
	CHECK(stats.open);
}

/* Pages of the range that are present according to the kernel's page map. */
static inline uint32_t present(const void *start, uint32_t pages)
{
	uint64_t entries[512];
	uint32_t count = 0;
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	CHECK(map >= 0);
	for (uint32_t done = 0; done < pages; done += 512) {
		uint32_t part = pages - done < 512 ? pages - done : 512;
		off_t at = (off_t)(((uintptr_t)start / VB_PAGE_SIZE_BYTES + done) * sizeof *entries);

		CHECK(pread(map, entries, part * sizeof *entries, at) == (ssize_t)(part * sizeof *entries));
		for (uint32_t i = 0; i < part; i++)
			count += entries[i] >> 62 != 0; /* present, or being migrated by the kernel */
	}
	close(map);
	return count;
}

/*
 * The invariant of each zone, counted by the kernel. Pages that are on their way may be there or not; without other threads
 * there are none.
 */
static inline void check_invariant(struct vb_window *window)
{
	for (size_t i = 0; i < window->zone_count; i++) {
		struct vb_area *area = &window->areas[i];
		struct vb_zone *zone = &area->zone;
		uint32_t there, settled, moving = 0;

		pthread_mutex_lock(&area->lock);
		for (uint32_t page = 0; page < zone->count; page++)
			moving += zone->pages[page].state == VB_COMING || zone->pages[page].state == VB_LEAVING;
		there = present(window->guest + vb_offset(zone->first), zone->count);
		settled = zone->fresh.count + zone->main.count;
		for (uint32_t page = 0; page < zone->count; page++)
			settled += zone->pages[page].state == VB_FIXED;
		if (!area->open) { /* else all of it may be there */
			CHECK(there >= settled && there <= settled + moving);
			CHECK(zone->plaintext >= settled + zone->standby.count);
			CHECK(zone->plaintext <= settled + zone->standby.count + moving);
			CHECK(zone->plaintext <= zone->limit && there + zone->standby.count <= zone->limit);
		}
		pthread_mutex_unlock(&area->lock);
	}
}

#endif
