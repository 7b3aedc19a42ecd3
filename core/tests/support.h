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

static inline struct vb_window *open_with_grace(const struct vb_zone_config *zones, size_t count, int grace_ms)
{
	struct vb_config config = {
		.zones = zones,
		.zone_count = count,
		.key = test_key,
		.instance = test_instance,
		.handler_cpu = -1,
		.grace_ms = grace_ms,
	};
	struct vb_window *window = NULL;
	int status = vb_window_create(&config, &window);

	if (status)
		fprintf(stderr, "vb_window_create: %s\n", vb_status_message(status));
	CHECK(status == VB_OK);
	return window;
}

static inline struct vb_window *open_window(const struct vb_zone_config *zones, size_t count)
{
	return open_with_grace(zones, count, -1);
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
			count += entries[i] >> 63 & 1;
	}
	close(map);
	return count;
}

/* The invariant of each zone, counted by the kernel; between two operations, so that none is on its way. */
static inline void check_invariant(struct vb_window *window)
{
	vb_lock(window);
	for (size_t i = 0; i < window->zone_count; i++) {
		struct vb_zone *zone = &window->zones[i];
		uint32_t there = present(window->guest + zone->first * VB_PAGE_SIZE_BYTES, zone->pages);

		if (zone->open) {
			CHECK(vb_open_pages(window, zone) == there);
			continue;
		}
		CHECK(there == zone->plaintext);
		CHECK(there <= zone->limit);
		CHECK(zone->count == zone->plaintext);
	}
	vb_unlock(window);
}

#endif
