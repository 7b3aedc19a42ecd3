/* The window's life: made, its zones' percentages changed, closed. Contents go through transfer.c and paging.c. */
#define _GNU_SOURCE
#include "window.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "status.h"
#include "uffd.h"
#include "window_internal.h"

#define HUGE_PAGE ((size_t)2 << 20)

void vb_lock(struct vb_window *window)
{
	struct vb_turnstile *lock = &window->lock;
	uint64_t mine;

	pthread_mutex_lock(&lock->mutex);
	mine = lock->next++;
	while (lock->serving != mine)
		pthread_cond_wait(&lock->turn, &lock->mutex);
	pthread_mutex_unlock(&lock->mutex);
}

void vb_unlock(struct vb_window *window)
{
	struct vb_turnstile *lock = &window->lock;

	pthread_mutex_lock(&lock->mutex);
	lock->serving++;
	if (lock->serving != lock->next)
		pthread_cond_broadcast(&lock->turn);
	pthread_mutex_unlock(&lock->mutex);
}

int vb_enter(struct vb_window *window)
{
	pthread_rwlock_rdlock(&window->life);
	if (!atomic_load(&window->closing))
		return VB_OK;
	pthread_rwlock_unlock(&window->life);
	return VB_CLOSED;
}

void vb_leave(struct vb_window *window)
{
	pthread_rwlock_unlock(&window->life);
}

static bool swap_is_on(void)
{
	FILE *swaps = fopen("/proc/swaps", "re");
	char line[256];
	int lines = 0;

	if (!swaps)
		return true; /* not known */
	while (fgets(line, sizeof line, swaps))
		lines++;
	fclose(swaps);
	return lines > 1; /* the first is a heading */
}

/*
 * Address space for guest memory or its ciphertext, aligned as huge pages are: never dumped, inherited, merged,
 * swapped, nor in huge pages (but see open_zones).
 */
static int map_memory(size_t bytes, uint8_t **out)
{
	static const int advice[] = {MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DONTFORK, MADV_UNMERGEABLE};
	uint8_t *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (memory == MAP_FAILED)
		return -errno;
	before = -(uintptr_t)memory % HUGE_PAGE;
	if (before)
		munmap(memory, before);
	memory += before;
	munmap(memory + bytes, HUGE_PAGE - before);
	*out = memory;
	for (size_t i = 0; i < sizeof advice / sizeof *advice; i++)
		/* EINVAL: a kernel without huge pages, or without merging */
		if (madvise(memory, bytes, advice[i]) != 0 && errno != EINVAL)
			return -errno;
	return VB_OK;
}

static int keep_from_swap(struct vb_window *window)
{
	if (mlock2(window->guest, window->bytes, MLOCK_ONFAULT) == 0 &&
	    mlock2(window->side, window->bytes, MLOCK_ONFAULT) == 0)
		return VB_OK;
	/* Pages move only between mappings that are both locked or both not. */
	munlock(window->guest, window->bytes);
	munlock(window->side, window->bytes);
	return swap_is_on() ? VB_SWAP : VB_OK;
}

static int table_create(size_t count, size_t size, void *out)
{
	void *memory = mmap(NULL, count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -errno;
	memcpy(out, &memory, sizeof memory);
	return VB_OK;
}

static int check(const struct vb_config *config, uint64_t *pages)
{
	*pages = 0;
	if (!config->zone_count || config->zone_count > VB_MAXIMUM_ZONES || config->grace_ms < -1)
		return VB_INVALID;
	for (size_t i = 0; i < config->zone_count; i++) {
		if (!config->zones[i].pages || config->zones[i].pages > UINT32_MAX / 2 ||
		    config->zones[i].percent > 100)
			return VB_INVALID;
		*pages += config->zones[i].pages;
	}
	if (*pages > UINT32_MAX / 2)
		return VB_INVALID;
	return sysconf(_SC_PAGESIZE) == (long)VB_PAGE_SIZE_BYTES ? VB_OK : VB_PAGE_SIZE;
}

static int zones_create(struct vb_window *window, const struct vb_config *config)
{
	uint32_t first = 0;

	for (size_t i = 0; i < config->zone_count; i++) {
		uint32_t pages = (uint32_t)config->zones[i].pages;
		int status;

		vb_zone_init(&window->zones[i], first, pages, config->zones[i].percent,
			     window->queues + first);
		window->zone_count = i + 1;
		status = vb_cipher_create(config->cipher, config->key, config->instance, (uint32_t)i,
					  &window->zones[i].cipher);
		if (status)
			return status;
		first += pages;
	}
	return VB_OK;
}

/* Lets the kernel map open zones as it likes, and sends the faults of all others to the handler. */
static int open_zones(struct vb_window *window)
{
	int status = VB_OK;

	for (size_t i = 0; i < window->zone_count && !status; i++) {
		uint8_t *start = window->guest + (size_t)window->zones[i].first * VB_PAGE_SIZE_BYTES;
		size_t bytes = (size_t)window->zones[i].pages * VB_PAGE_SIZE_BYTES;

		if (!window->zones[i].open)
			status = vb_uffd_register(window->uffd, start, bytes);
		else if (madvise(start, bytes, MADV_HUGEPAGE) != 0 && errno != EINVAL)
			status = -errno;
	}
	return status;
}

static int build(struct vb_window *window, const struct vb_config *config, uint64_t pages)
{
	int status = vb_cipher_self_test(config->cipher);

	if (status)
		return status;
	window->failure_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	window->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (window->failure_fd < 0 || window->wake_fd < 0)
		return -errno;
	status = vb_uffd_open(&window->uffd);
	if (!status)
		status = map_memory(window->bytes, &window->guest);
	if (!status)
		status = map_memory(window->bytes, &window->side);
	if (!status)
		status = keep_from_swap(window);
	if (!status)
		status = table_create(pages, sizeof *window->pages, &window->pages);
	if (!status)
		status = table_create(pages, sizeof *window->queues, &window->queues);
	if (!status)
		status = zones_create(window, config);
	if (!status)
		status = open_zones(window);
	if (!status)
		status = vb_uffd_register(window->uffd, window->side, window->bytes);
	if (!status)
		status = vb_handler_start(window, config->handler_cpu);
	return status;
}

int vb_window_create(const struct vb_config *config, struct vb_window **out)
{
	struct vb_window *window;
	uint64_t pages;
	int status = check(config, &pages);

	if (status)
		return status;
	window = calloc(1, sizeof *window);
	if (!window)
		return -ENOMEM;
	window->uffd = window->wake_fd = window->failure_fd = -1;
	window->grace_ms = config->grace_ms;
	window->bytes = (size_t)pages * VB_PAGE_SIZE_BYTES;
	pthread_mutex_init(&window->lock.mutex, NULL);
	pthread_cond_init(&window->lock.turn, NULL);
	pthread_rwlock_init(&window->life, NULL);
	pthread_mutex_init(&window->change, NULL);
	status = build(window, config, pages);
	if (status) {
		vb_window_free(window);
		return status;
	}
	*out = window;
	return VB_OK;
}

void vb_window_close(struct vb_window *window)
{
	if (atomic_exchange(&window->closing, true))
		return;
	vb_handler_stop(window);
	pthread_rwlock_wrlock(&window->life);
	if (window->pages)
		vb_wipe(window);
	/*
	 * Inaccessible before the waiting threads are woken (by closing uffd): whoever waits for a page gets
	 * an error, never a page of zeros.
	 */
	if (window->guest &&
	    mmap(window->guest, window->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		 0) == MAP_FAILED)
		munmap(window->guest, window->bytes);
	if (window->side)
		munmap(window->side, window->bytes);
	window->side = NULL;
	if (window->uffd >= 0)
		close(window->uffd);
	window->uffd = -1;
	pthread_rwlock_unlock(&window->life);
}

void vb_window_free(struct vb_window *window)
{
	uint64_t pages;

	if (!window)
		return;
	vb_window_close(window);
	pages = window->bytes / VB_PAGE_SIZE_BYTES;
	if (window->guest)
		munmap(window->guest, window->bytes);
	if (window->pages)
		munmap(window->pages, pages * sizeof *window->pages);
	if (window->queues)
		munmap(window->queues, pages * sizeof *window->queues);
	if (window->wake_fd >= 0)
		close(window->wake_fd);
	if (window->failure_fd >= 0)
		close(window->failure_fd);
	pthread_mutex_destroy(&window->lock.mutex);
	pthread_cond_destroy(&window->lock.turn);
	pthread_rwlock_destroy(&window->life);
	pthread_mutex_destroy(&window->change);
	free(window);
}

void *vb_window_address(const struct vb_window *window)
{
	return window->guest;
}

size_t vb_window_bytes(const struct vb_window *window)
{
	return window->bytes;
}

int vb_window_failure_fd(const struct vb_window *window)
{
	return window->failure_fd;
}

struct vb_failure vb_window_failure(struct vb_window *window)
{
	struct vb_failure failure;

	vb_lock(window);
	failure = window->failure;
	vb_unlock(window);
	return failure;
}

/* One step towards a smaller window; *done when it is reached. */
static int shrink(struct vb_window *window, struct vb_zone *zone, uint32_t target, bool *done)
{
	uint32_t before = zone->limit;
	uint32_t next = zone->plaintext < before ? zone->plaintext : before;
	int status;

	next = next > target + VB_RUN ? next - VB_RUN : target;
	zone->limit = next;
	status = vb_make_room(window, zone, 0);
	if (status)
		zone->limit = before;
	*done = !status && next == target;
	return status;
}

int vb_window_set_percent(struct vb_window *window, size_t index, unsigned percent)
{
	struct vb_zone *zone;
	uint32_t target;
	bool done = false;
	int status = vb_enter(window);

	if (status)
		return status;
	if (index >= window->zone_count || percent > 100) {
		vb_leave(window);
		return VB_INVALID;
	}
	pthread_mutex_lock(&window->change);
	zone = &window->zones[index];
	target = vb_zone_window(zone->pages, percent);
	while (!done && !status) {
		vb_lock(window);
		if (window->failure.status) {
			status = VB_FAILED;
		} else if (atomic_load(&window->closing)) {
			status = VB_CLOSED;
		} else if (zone->open && percent) {
			status = vb_watch(window, zone);
		} else if (zone->limit <= target) {
			zone->limit = target;
			done = true;
		} else {
			status = shrink(window, zone, target, &done);
		}
		if (done) {
			zone->percent = percent;
			zone->plaintext_max = zone->plaintext;
		} else if (status) {
			zone->limit = vb_zone_window(zone->pages, zone->percent);
		}
		vb_unlock(window);
	}
	pthread_mutex_unlock(&window->change);
	vb_leave(window);
	return status;
}

int vb_window_stats(struct vb_window *window, size_t index, struct vb_stats *out)
{
	const struct vb_zone *zone;
	int status = vb_enter(window);

	if (status)
		return status;
	if (index >= window->zone_count) {
		vb_leave(window);
		return VB_INVALID;
	}
	vb_lock(window);
	zone = &window->zones[index];
	*out = (struct vb_stats){
		.pages = zone->pages,
		.percent = zone->percent,
		.window = zone->limit,
		.plaintext = zone->plaintext,
		.plaintext_max = zone->plaintext_max,
		.faults = zone->faults,
		.zero_faults = zone->zero_faults,
		.evictions = zone->evictions,
		.bytes_encrypted = zone->bytes_encrypted,
		.bytes_decrypted = zone->bytes_decrypted,
		.busy = zone->busy,
	};
	if (zone->open)
		out->plaintext = out->plaintext_max = vb_open_pages(window, zone);
	vb_unlock(window);
	vb_leave(window);
	return VB_OK;
}
