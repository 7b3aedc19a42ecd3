#define _GNU_SOURCE
#include "window.h"

#include <errno.h>
#include <openssl/evp.h>
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
/* Most bytes that are copied while the lock is held. */
#define COPY_STEP ((size_t)1 << 20)

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

/* Begins a call: from VB_OK until leave() the window is not taken down. */
static int enter(struct vb_window *window)
{
	pthread_rwlock_rdlock(&window->life);
	if (!atomic_load(&window->closing))
		return VB_OK;
	pthread_rwlock_unlock(&window->life);
	return VB_CLOSED;
}

static void leave(struct vb_window *window)
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

/* A buffer in the window would wait for a page while the lock is held. */
static bool overlaps(const void *buffer, size_t bytes, const uint8_t *memory, size_t size)
{
	uintptr_t start = (uintptr_t)buffer, other = (uintptr_t)memory;

	return start < other + size && other < start + bytes;
}

static int check_transfer(const struct vb_window *window, size_t offset, const void *buffer, size_t bytes)
{
	if (offset > window->bytes || bytes > window->bytes - offset)
		return VB_INVALID;
	if (overlaps(buffer, bytes, window->guest, window->bytes) ||
	    overlaps(buffer, bytes, window->side, window->bytes))
		return VB_INVALID;
	return VB_OK;
}

/* Like vb_page_in, but keeps the lock only on success. */
static int lock_page(struct vb_window *window, uint32_t page)
{
	int status;

	vb_lock(window);
	status = vb_page_in(window, page);
	if (status)
		vb_unlock(window);
	return status;
}

static size_t part_of(size_t offset, size_t bytes)
{
	size_t rest = VB_PAGE_SIZE_BYTES - offset % VB_PAGE_SIZE_BYTES;

	return rest < bytes ? rest : bytes;
}

/* Into an open zone, which needs no pages brought in. Gives how many bytes, or 0. */
static size_t copy_open(struct vb_window *window, size_t offset, const uint8_t *data, size_t bytes)
{
	const struct vb_zone *zone = vb_zone_of(window, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
	size_t end = ((size_t)zone->first + zone->pages) * VB_PAGE_SIZE_BYTES;

	if (bytes > end - offset)
		bytes = end - offset;
	if (bytes > COPY_STEP)
		bytes = COPY_STEP;
	vb_lock(window);
	if (!zone->open || window->failure.status)
		bytes = 0;
	memcpy(window->guest + offset, data, bytes);
	vb_unlock(window);
	return bytes;
}

/* Whole pages that were never touched, with their contents in one step. Gives how many bytes, or 0. */
static int fill_pages(struct vb_window *window, size_t offset, const uint8_t *data, size_t bytes, size_t *filled)
{
	uint32_t page = (uint32_t)(offset / VB_PAGE_SIZE_BYTES);
	size_t whole = offset % VB_PAGE_SIZE_BYTES ? 0 : bytes / VB_PAGE_SIZE_BYTES;
	uint32_t limit, count;
	int status = VB_OK;

	*filled = 0;
	if (!whole)
		return VB_OK;
	vb_lock(window);
	limit = vb_zone_of(window, page)->limit;
	count = vb_absent_run(window, page, whole < VB_RUN ? (uint32_t)whole : VB_RUN);
	if (count > limit)
		count = limit;
	if (count)
		status = vb_page_fill(window, page, count, data);
	vb_unlock(window);
	if (!status)
		*filled = (size_t)count * VB_PAGE_SIZE_BYTES;
	return status;
}

int vb_window_write(struct vb_window *window, size_t offset, const void *data, size_t bytes)
{
	const uint8_t *from = data;
	int status = enter(window);

	if (status)
		return status;
	status = check_transfer(window, offset, data, bytes);
	while (!status && bytes) {
		size_t part;

		if (atomic_load(&window->closing)) {
			status = VB_CLOSED;
			break;
		}
		part = copy_open(window, offset, from, bytes);
		if (!part)
			status = fill_pages(window, offset, from, bytes, &part);
		if (!status && !part) {
			part = part_of(offset, bytes);
			status = lock_page(window, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
			if (!status) {
				memcpy(window->guest + offset, from, part);
				vb_unlock(window);
			}
		}
		offset += part;
		from += part;
		bytes -= part;
	}
	leave(window);
	return status;
}

int vb_window_read(struct vb_window *window, size_t offset, void *data, size_t bytes)
{
	uint8_t *to = data;
	int status = enter(window);

	if (status)
		return status;
	status = check_transfer(window, offset, data, bytes);
	while (!status && bytes) {
		size_t part = part_of(offset, bytes);

		if (atomic_load(&window->closing)) {
			status = VB_CLOSED;
			break;
		}
		status = lock_page(window, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
		if (status)
			break;
		memcpy(to, window->guest + offset, part);
		vb_unlock(window);
		offset += part;
		to += part;
		bytes -= part;
	}
	leave(window);
	return status;
}

/* The hash of one page of which `bytes` are measured. */
static int page_digest(struct vb_window *window, size_t offset, size_t bytes, const EVP_MD *hash, EVP_MD_CTX *context,
		       uint8_t *out)
{
	static const uint8_t zeros[VB_PAGE_SIZE_BYTES];
	int status = lock_page(window, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
	bool done;

	if (status)
		return status;
	done = EVP_DigestInit_ex(context, hash, NULL) == 1 &&
	       EVP_DigestUpdate(context, window->guest + offset, bytes) == 1;
	vb_unlock(window);
	done = done && EVP_DigestUpdate(context, zeros, VB_PAGE_SIZE_BYTES - bytes) == 1 &&
	       EVP_DigestFinal_ex(context, out, NULL) == 1;
	return done ? VB_OK : VB_CRYPTO;
}

int vb_window_digests(struct vb_window *window, size_t offset, size_t bytes, const char *algorithm, uint8_t *out)
{
	EVP_MD *hash = EVP_MD_fetch(NULL, algorithm, NULL);
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	size_t pages = bytes / VB_PAGE_SIZE_BYTES + (bytes % VB_PAGE_SIZE_BYTES != 0);
	int status = enter(window);

	if (!status) {
		if (!context)
			status = -ENOMEM;
		else if (!hash || EVP_MD_get_size(hash) != VB_DIGEST_BYTES)
			status = VB_NO_CIPHER;
		else if (offset % VB_PAGE_SIZE_BYTES || offset > window->bytes || bytes > window->bytes - offset)
			status = VB_INVALID;
		else
			status = check_transfer(window, 0, out, pages * VB_DIGEST_BYTES);
		while (!status && bytes) {
			size_t part = part_of(offset, bytes);

			status = atomic_load(&window->closing) ? VB_CLOSED
							       : page_digest(window, offset, part, hash, context, out);
			out += VB_DIGEST_BYTES;
			offset += part;
			bytes -= part;
		}
		leave(window);
	}
	EVP_MD_CTX_free(context);
	EVP_MD_free(hash);
	return status;
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
	int status = enter(window);

	if (status)
		return status;
	if (index >= window->zone_count || percent > 100) {
		leave(window);
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
	leave(window);
	return status;
}

int vb_window_stats(struct vb_window *window, size_t index, struct vb_stats *out)
{
	const struct vb_zone *zone;
	int status = enter(window);

	if (status)
		return status;
	if (index >= window->zone_count) {
		leave(window);
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
	leave(window);
	return VB_OK;
}
