/* How pages come and go; with the window's lock held throughout. */
#include "window_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "erase.h"
#include "status.h"
#include "uffd.h"

#define MINCORE_RUN 512

static size_t offset_of(uint32_t page)
{
	return (size_t)page * VB_PAGE_SIZE_BYTES;
}

struct vb_zone *vb_zone_of(struct vb_window *window, uint32_t page)
{
	struct vb_zone *zone = window->zones;

	while (page - zone->first >= zone->pages)
		zone++;
	return zone;
}

int vb_fail(struct vb_window *window, int status, uint32_t page)
{
	const uint64_t one = 1;
	struct vb_zone *zone = vb_zone_of(window, page);

	if (!window->failure.status) {
		window->failure = (struct vb_failure){
			.status = status,
			.zone = (uint32_t)(zone - window->zones),
			.page = page - zone->first,
		};
		if (write(window->failure_fd, &one, sizeof one) != (ssize_t)sizeof one)
			return status; /* an eventfd at 0 takes 1; there is nobody else to tell */
	}
	return status;
}

static void set_state(struct vb_window *window, uint32_t page, uint32_t count, enum vb_state state)
{
	for (uint32_t i = 0; i < count; i++)
		window->pages[page + i].state = state;
}

/* Pages of the same state as `page` from it on, in its zone, at most `most`. */
static uint32_t run_of(struct vb_window *window, const struct vb_zone *zone, uint32_t page, uint32_t most)
{
	uint32_t end = zone->first + zone->pages;
	uint32_t run = 1;

	while (run < most && page + run < end && window->pages[page + run].state == window->pages[page].state)
		run++;
	return run;
}

uint32_t vb_absent_run(struct vb_window *window, uint32_t page, uint32_t most)
{
	if (!most || window->pages[page].state != VB_ABSENT)
		return 0;
	return run_of(window, vb_zone_of(window, page), page, most);
}

static void jobs_of(struct vb_window *window, const struct vb_zone *zone, uint32_t page, uint32_t count,
		    struct vb_job *jobs)
{
	for (uint32_t i = 0; i < count; i++)
		jobs[i] = (struct vb_job){
			.page = page + i - zone->first,
			.version = window->pages[page + i].version,
			.data = window->side + offset_of(page + i),
			.tag = window->pages[page + i].tag,
		};
}

/* Encrypts pages that were moved aside, under a version that they never had. */
static int seal(struct vb_window *window, struct vb_zone *zone, uint32_t page, uint32_t count)
{
	struct vb_job jobs[VB_RUN] = {0};
	int status;

	jobs_of(window, zone, page, count, jobs);
	for (uint32_t i = 0; i < count; i++)
		jobs[i].version++;
	status = vb_cipher_seal(zone->cipher, jobs, count);
	if (status)
		return vb_fail(window, status, page); /* the cipher has erased the pages */
	vb_flush(window->side + offset_of(page), offset_of(count)); /* before they stop counting as plaintext */
	for (uint32_t i = 0; i < count; i++)
		window->pages[page + i].version++;
	set_state(window, page, count, VB_ENCRYPTED);
	vb_zone_lose(zone, count);
	zone->evictions += count;
	zone->bytes_encrypted += offset_of(count);
	return VB_OK;
}

/* Evicts the neighbours at the head of the queue, at most `most`. -EBUSY: the first one is pinned. */
static int evict(struct vb_window *window, struct vb_zone *zone, uint32_t most)
{
	uint32_t page = 0;
	uint32_t run = vb_zone_peek(zone, most, &page);
	size_t bytes = 0;
	int status = vb_uffd_move(window->uffd, window->side + offset_of(page), window->guest + offset_of(page),
				  offset_of(run), &bytes);
	uint32_t moved = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);

	vb_zone_drop(zone, moved);
	if (moved)
		return seal(window, zone, page, moved); /* an error behind it is met again at its own page */
	switch (status) {
	case -EBUSY:
		zone->busy++;
		vb_zone_rotate(zone);
		return status;
	case -ENOENT: /* this process dropped the page (MADV_DONTNEED): it reads as zero again */
		vb_zone_drop(zone, 1);
		vb_zone_lose(zone, 1);
		set_state(window, page, 1, VB_ABSENT);
		return VB_OK;
	default:
		return vb_fail(window, status, page);
	}
}

int vb_make_room(struct vb_window *window, struct vb_zone *zone, uint32_t room)
{
	uint32_t busy = 0;

	while (zone->plaintext + room > zone->limit) {
		uint32_t over = zone->plaintext + room - zone->limit;
		/* A few more than needed where they are neighbours: one system call for all. */
		uint32_t most = zone->limit / 8 < VB_RUN ? zone->limit / 8 : VB_RUN;
		int status;

		if (busy >= zone->count)
			return VB_PINNED;
		if (most < over)
			most = over < VB_RUN ? over : VB_RUN;
		status = evict(window, zone, most);
		if (status == -EBUSY)
			busy++;
		else if (status)
			return status;
	}
	return VB_OK;
}

/* After mapping: `done` of `count` pages that were counted beforehand are there. */
static int settle(struct vb_window *window, struct vb_zone *zone, uint32_t page, uint32_t count, uint32_t done)
{
	set_state(window, page, done, VB_PLAINTEXT);
	vb_zone_push(zone, page, done);
	vb_zone_lose(zone, count - done);
	return VB_OK;
}

/*
 * Copies of these, not the kernel's shared page of zeros: a guest writes to what it touches first, and to part from
 * the shared page costs another fault and a flush of the translation buffers.
 */
static uint8_t zeros[VB_ZERO_RUN * VB_PAGE_SIZE_BYTES];

static int map_zero(struct vb_window *window, struct vb_zone *zone, uint32_t page, uint32_t count)
{
	size_t bytes = 0;
	uint32_t done;
	int status;

	vb_zone_gain(zone, count);
	status = vb_uffd_copy(window->uffd, window->guest + offset_of(page), zeros, offset_of(count), &bytes);
	done = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);
	if (!done && status == -EEXIST) { /* it is there, whoever mapped it: it counts, and waits no more */
		vb_uffd_wake(window->uffd, window->guest + offset_of(page), VB_PAGE_SIZE_BYTES);
		done = 1;
	}
	settle(window, zone, page, count, done);
	zone->zero_faults++;
	return done ? VB_OK : vb_fail(window, status, page);
}

static int map_decrypted(struct vb_window *window, struct vb_zone *zone, uint32_t page, uint32_t count)
{
	struct vb_job jobs[VB_RUN] = {0};
	size_t bytes = 0, failed = 0;
	int status;

	jobs_of(window, zone, page, count, jobs);
	vb_zone_gain(zone, count);
	status = vb_cipher_open(zone->cipher, jobs, count, &failed);
	if (status) {
		vb_zone_lose(zone, count); /* cleansed */
		return vb_fail(window, status, page + (uint32_t)failed);
	}
	zone->bytes_decrypted += offset_of(count);
	status = vb_uffd_move(window->uffd, window->guest + offset_of(page), window->side + offset_of(page),
			      offset_of(count), &bytes);
	if (status) {
		uint32_t done = (uint32_t)(bytes / VB_PAGE_SIZE_BYTES);

		vb_erase(window->side + offset_of(page + done), offset_of(count - done));
		settle(window, zone, page, count, done);
		return vb_fail(window, status, page + done);
	}
	return settle(window, zone, page, count, count);
}

int vb_page_in(struct vb_window *window, uint32_t page)
{
	struct vb_zone *zone = vb_zone_of(window, page);
	struct vb_stream *stream;
	uint32_t want, count;
	bool absent;
	int status;

	if (window->failure.status)
		return VB_FAILED;
	if (zone->open)
		return VB_OK;
	if (window->pages[page].state == VB_PLAINTEXT) {
		vb_uffd_wake(window->uffd, window->guest + offset_of(page), VB_PAGE_SIZE_BYTES);
		return VB_OK;
	}
	absent = window->pages[page].state == VB_ABSENT;
	want = vb_zone_expect(zone, page, &stream);
	if (absent && zone->limit - zone->plaintext >= VB_ZERO_RUN)
		want = VB_ZERO_RUN; /* as long as there is room */
	if (want > zone->limit / 4)
		want = zone->limit / 4 ? zone->limit / 4 : 1;
	count = run_of(window, zone, page, want);
	status = vb_make_room(window, zone, count);
	if (status)
		return status;
	status = absent ? map_zero(window, zone, page, count) : map_decrypted(window, zone, page, count);
	if (status)
		return status;
	zone->faults++;
	*stream = (struct vb_stream){.next = page + count, .run = count};
	return VB_OK;
}

int vb_page_fill(struct vb_window *window, uint32_t page, uint32_t count, const void *data)
{
	struct vb_zone *zone = vb_zone_of(window, page);
	size_t bytes = 0;
	int status;

	if (window->failure.status)
		return VB_FAILED;
	status = vb_make_room(window, zone, count);
	if (status)
		return status;
	vb_zone_gain(zone, count);
	status = vb_uffd_copy(window->uffd, window->guest + offset_of(page), data, offset_of(count), &bytes);
	settle(window, zone, page, count, (uint32_t)(bytes / VB_PAGE_SIZE_BYTES));
	return status ? vb_fail(window, status, page) : VB_OK;
}

/*
 * Calls `visit` for each page that is there, of `count` from `first` on, without touching one: an absent page would
 * wait for the handler. Goes on after an error, and gives the last one.
 */
static int for_each_resident(struct vb_window *window, uint32_t first, uint32_t count,
			     void (*visit)(struct vb_window *window, uint32_t page, void *context), void *context)
{
	uint32_t end = first + count;
	int status = VB_OK;

	for (; first < end; first += MINCORE_RUN) {
		unsigned char resident[MINCORE_RUN];
		uint32_t run = end - first < MINCORE_RUN ? end - first : MINCORE_RUN;

		if (mincore(window->guest + offset_of(first), offset_of(run), resident) != 0) {
			status = -errno;
			continue;
		}
		for (uint32_t i = 0; i < run; i++)
			if (resident[i] & 1)
				visit(window, first + i, context);
	}
	return status;
}

static void count_page(struct vb_window *window, uint32_t page, void *count)
{
	(void)window;
	(void)page;
	++*(uint32_t *)count;
}

uint32_t vb_open_pages(struct vb_window *window, const struct vb_zone *zone)
{
	uint32_t count = 0;

	if (for_each_resident(window, zone->first, zone->pages, count_page, &count))
		return zone->pages; /* at most */
	return count;
}

static void adopt_page(struct vb_window *window, uint32_t page, void *zone)
{
	vb_zone_gain(zone, 1);
	settle(window, zone, page, 1, 1);
}

int vb_watch(struct vb_window *window, struct vb_zone *zone)
{
	uint8_t *start = window->guest + offset_of(zone->first);
	int status;

	if (madvise(start, offset_of(zone->pages), MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
		return vb_fail(window, -errno, zone->first);
	/* The kernel ends all faults under way first: what is not there afterwards comes through the handler. */
	status = vb_uffd_register(window->uffd, start, offset_of(zone->pages));
	if (status) /* perhaps a part of the zone is registered, and nobody would answer its faults */
		return vb_fail(window, status, zone->first);
	zone->open = false;
	status = for_each_resident(window, zone->first, zone->pages, adopt_page, zone);
	return status ? vb_fail(window, status, zone->first) : VB_OK;
}

static void wipe_page(struct vb_window *window, uint32_t page, void *unused)
{
	(void)unused;
	if (window->pages[page].state == VB_PLAINTEXT || vb_zone_of(window, page)->open)
		vb_erase(window->guest + offset_of(page), VB_PAGE_SIZE_BYTES);
}

void vb_wipe(struct vb_window *window)
{
	for (size_t i = 0; i < window->zone_count; i++) {
		vb_cipher_destroy(window->zones[i].cipher);
		window->zones[i].cipher = NULL;
	}
	/* What mincore does not tell is lost to us; closing takes the mapping away. */
	(void)for_each_resident(window, 0, (uint32_t)(window->bytes / VB_PAGE_SIZE_BYTES), wipe_page, NULL);
}
