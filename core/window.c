/* The window's life: made, entered by each call, failed, closed. */
#define _GNU_SOURCE
#include "window.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "status.h"
#include "uffd.h"
#include "window_internal.h"

int vb_enter(struct vb_window *window)
{
	int status = VB_OK;

	pthread_rwlock_rdlock(&window->life);
	if (atomic_load(&window->closing))
		status = VB_CLOSED;
	else if (atomic_load(&window->placing))
		status = VB_UNPLACED;
	if (status)
		pthread_rwlock_unlock(&window->life);
	return status;
}

void vb_leave(struct vb_window *window)
{
	pthread_rwlock_unlock(&window->life);
}

struct vb_area *vb_area_of(struct vb_window *window, uint32_t page)
{
	struct vb_area *area = window->areas;

	while (page - area->zone.first >= area->zone.count)
		area++;
	return area;
}

int vb_fail(struct vb_window *window, int status, uint32_t page)
{
	const uint64_t one = 1;
	const struct vb_area *area = vb_area_of(window, page);

	pthread_mutex_lock(&window->failing);
	if (!window->failure.status) {
		window->failure = (struct vb_failure){
			.status = status,
			.zone = (uint32_t)(area - window->areas),
			.page = page - area->zone.first,
		};
		atomic_store(&window->failed, true);
		while (write(window->failure_fd, &one, sizeof one) < 0 && errno == EINTR)
			; /* an eventfd at 0 takes 1 */
	}
	pthread_mutex_unlock(&window->failing);
	/* Pages that were on their way stay so: who waits for one must look up, and end. */
	for (size_t i = 0; i < window->zone_count; i++)
		vb_settled(&window->areas[i]);
	return status;
}

void vb_settled(struct vb_area *area)
{
	pthread_cond_broadcast(&area->settled);
}

void vb_await(struct vb_area *area)
{
	pthread_cond_wait(&area->settled, &area->lock);
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
	if (!config->zone_count || config->zone_count > VB_MAXIMUM_ZONES || config->grace_ms < -1 ||
	    config->handler_count > VB_MAXIMUM_HANDLERS)
		return VB_INVALID;
	for (size_t i = 0; i < config->zone_count; i++) {
		const struct vb_zone_config *zone = &config->zones[i];

		if (!zone->pages || zone->pages > UINT32_MAX / 2 || zone->percent > 100 ||
		    zone->pin_budget > zone->pages)
			return VB_INVALID;
		*pages += config->zones[i].pages;
	}
	if (*pages > UINT32_MAX / 2)
		return VB_INVALID;
	return sysconf(_SC_PAGESIZE) == (long)VB_PAGE_SIZE_BYTES ? VB_OK : VB_PAGE_SIZE;
}

static int areas_create(struct vb_window *window, const struct vb_config *config)
{
	const struct vb_provider *provider = config->provider ? config->provider : &vb_libcrypto;
	uint32_t first = 0;
	int status = vb_cipher_self_test(provider, config->cipher);

	for (size_t i = 0; i < config->zone_count && !status; i++) {
		struct vb_area *area = &window->areas[i];
		unsigned percent = config->zones[i].percent;
		uint32_t pages = (uint32_t)config->zones[i].pages;

		pthread_mutex_init(&area->lock, NULL);
		pthread_cond_init(&area->settled, NULL);
		window->zone_count = i + 1;
		vb_zone_init(&area->zone, first, pages, vb_zone_window(pages, percent), window->pages + first);
		area->percent = percent;
		area->open = percent == 0;
		area->pin_budget = (uint32_t)config->zones[i].pin_budget;
		status = vb_secret_create(&area->secret, provider, config->cipher, config->key, config->instance,
					  (uint32_t)i);
		first += pages;
	}
	return status;
}

static int build(struct vb_window *window, const struct vb_config *config, uint64_t pages)
{
	int status;

	window->failure_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (window->failure_fd < 0)
		return -errno;
	status = vb_lane_init(&window->calls);
	if (!status)
		status = vb_uffd_open(config->userfaultfd, &window->uffd);
	if (!status)
		status = vb_map_memory(window->bytes, &window->guest);
	if (!status)
		status = vb_map_memory(window->bytes, &window->side);
	if (!status)
		status = vb_stripe_memory(window->guest, window->bytes);
	if (!status)
		status = vb_stripe_memory(window->side, window->bytes);
	if (!status)
		status = vb_keep_from_swap(window);
	if (!status)
		status = table_create(pages, sizeof *window->pages, &window->pages);
	if (!status)
		status = areas_create(window, config);
	if (!status)
		status = vb_open_zones(window);
	if (!status)
		status = vb_uffd_register(window->uffd, window->side, window->bytes);
	if (!status)
		status = vb_handlers_start(window, config->handler_cpus, config->handler_count);
	return status;
}

/* The grace after a failure must not depend on the clock's being set. */
static void end_init(pthread_cond_t *end)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(end, &attributes);
	pthread_condattr_destroy(&attributes);
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
	window->uffd = window->failure_fd = -1;
	window->grace_ms = config->grace_ms;
	window->placed = config->placed;
	atomic_store(&window->placing, config->placed);
	window->bytes = (size_t)pages * VB_PAGE_SIZE_BYTES;
	pthread_rwlock_init(&window->life, NULL);
	pthread_mutex_init(&window->change, NULL);
	pthread_mutex_init(&window->roster, NULL);
	pthread_mutex_init(&window->failing, NULL);
	end_init(&window->end);
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
	vb_handlers_stop(window);
	/* Calls under way end soon: none waits for a page that only a handler would bring. */
	pthread_rwlock_wrlock(&window->life);
	for (size_t i = 0; i < window->zone_count; i++)
		vb_opener_stop(&window->areas[i]);
	if (window->pages)
		vb_wipe(window);
	vb_lane_clear(&window->calls);
	vb_draws_free(window);
	/*
	 * Inaccessible before the waiting threads are woken (by closing uffd): whoever waits for a page gets
	 * an error, never a page of zeros.
	 */
	if (window->guest &&
	    mmap(window->guest, window->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		 0) == MAP_FAILED) {
		munmap(window->guest, window->bytes);
		window->guest = NULL;
	}
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
	for (size_t i = 0; i < window->zone_count; i++) {
		pthread_mutex_destroy(&window->areas[i].lock);
		pthread_cond_destroy(&window->areas[i].settled);
	}
	if (window->failure_fd >= 0)
		close(window->failure_fd);
	pthread_rwlock_destroy(&window->life);
	pthread_mutex_destroy(&window->change);
	pthread_mutex_destroy(&window->roster);
	pthread_mutex_destroy(&window->failing);
	pthread_cond_destroy(&window->end);
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

	pthread_mutex_lock(&window->failing);
	failure = window->failure;
	pthread_mutex_unlock(&window->failing);
	return failure;
}
