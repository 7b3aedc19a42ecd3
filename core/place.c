/*
 * Placement: a window whose page frames somebody has chosen, one for each page, before it is used.
 *
 * Frames can be moved between addresses of one process only, and this process cannot see their numbers. So it draws more
 * memory than it needs, somebody who may read its page map names the pages to keep, these are moved aside, and when
 * each page of the window has its frame the others are given back. What was not kept stays until then: else the kernel
 * would give the same frames again.
 *
 * From then on page and frame stay together: the frame of a page that is not in guest memory lies aside at the same offset,
 * and holds its ciphertext, its plaintext on standby, or zeros while the page is absent. A page that is dropped keeps its
 * frame, and the kernel never maps a new one.
 */
#define _GNU_SOURCE
#include "window_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "status.h"
#include "uffd.h"

/* Headers older than Linux 5.14 lack it. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct vb_draw {
	struct vb_draw *next;
	uint8_t *memory;
	size_t pages;
};

static size_t pages_of(const struct vb_window *window)
{
	return window->bytes / VB_PAGE_SIZE_BYTES;
}

static void leave(struct vb_window *window)
{
	pthread_mutex_unlock(&window->change);
	pthread_rwlock_unlock(&window->life);
}

/* VB_OK: the window is being placed, and stays so until `leave`. */
static int enter(struct vb_window *window)
{
	pthread_rwlock_rdlock(&window->life);
	pthread_mutex_lock(&window->change);
	if (!atomic_load(&window->closing) && atomic_load(&window->placing))
		return VB_OK;
	leave(window);
	return atomic_load(&window->closing) ? VB_CLOSED : VB_INVALID;
}

void vb_draws_free(struct vb_window *window)
{
	while (window->draws) {
		struct vb_draw *draw = window->draws;

		window->draws = draw->next;
		if (draw->memory)
			munmap(draw->memory, vb_offset((uint32_t)draw->pages));
		free(draw);
	}
}

static int draw_create(struct vb_window *window, size_t pages, struct vb_draw **out)
{
	struct vb_draw *draw = calloc(1, sizeof *draw);
	size_t bytes = vb_offset((uint32_t)pages);
	int status;

	if (!draw)
		return -ENOMEM;
	draw->pages = pages;
	status = vb_map_memory(bytes, &draw->memory);
	/* As the window's own is: pages move between mappings of one kind only, and the kernel may migrate what is not. */
	if (!status && mlock2(draw->memory, bytes, MLOCK_ONFAULT) != 0)
		status = -errno;
	if (!status && madvise(draw->memory, bytes, MADV_POPULATE_WRITE) != 0)
		status = -errno;
	if (!status)
		status = vb_uffd_register(window->uffd, draw->memory, bytes);
	/* Freed with the others, also after an error. */
	draw->next = window->draws;
	window->draws = draw;
	*out = draw;
	return status;
}

int vb_window_draw(struct vb_window *window, size_t pages, void **address)
{
	struct vb_draw *draw;
	int status = enter(window);

	if (status)
		return status;
	if (!pages || pages > UINT32_MAX / 2) {
		status = VB_INVALID;
	} else {
		status = draw_create(window, pages, &draw);
		if (!status)
			*address = draw->memory;
	}
	leave(window);
	return status;
}

static bool kept(const uint8_t *keep, size_t page)
{
	return keep[page / 8] >> page % 8 & 1;
}

int vb_window_keep(struct vb_window *window, const uint8_t *keep, size_t bytes, size_t *missing)
{
	const struct vb_draw *draw;
	int status = enter(window);

	if (status)
		return status;
	draw = window->draws;
	if (!draw || bytes != (draw->pages + 7) / 8)
		status = VB_INVALID;
	for (size_t page = 0; !status && page < draw->pages && window->placed_pages < pages_of(window); page++) {
		size_t run = 0, most = pages_of(window) - window->placed_pages, done = 0;

		while (run < most && page + run < draw->pages && kept(keep, page + run))
			run++;
		if (!run)
			continue;
		status = vb_uffd_move_in(window->uffd, window->side + vb_offset((uint32_t)window->placed_pages),
					 draw->memory + vb_offset((uint32_t)page), vb_offset((uint32_t)run), &done);
		window->placed_pages += done / VB_PAGE_SIZE_BYTES;
		if (status == -ENOENT) /* named twice */
			status = VB_INVALID;
		page += run;
	}
	*missing = pages_of(window) - window->placed_pages;
	leave(window);
	return status;
}

/* An open zone is the kernel's, and no page of it may be absent: that would become a frame of the kernel's choice. */
static int open_zone(struct vb_window *window, struct vb_area *area)
{
	size_t offset = vb_offset(area->zone.first), bytes = vb_offset(area->zone.count), done;
	int status = vb_uffd_move_in(window->uffd, window->guest + offset, window->side + offset, bytes, &done);

	return status ? status : vb_uffd_unregister(window->uffd, window->guest + offset, bytes);
}

int vb_window_settle(struct vb_window *window)
{
	int status = enter(window);

	if (status)
		return status;
	if (window->placed_pages < pages_of(window))
		status = VB_UNPLACED;
	for (size_t i = 0; i < window->zone_count && !status; i++)
		if (window->areas[i].open)
			status = open_zone(window, &window->areas[i]);
	if (!status) {
		vb_draws_free(window);
		atomic_store(&window->placing, false);
	}
	leave(window);
	return status;
}

const void *vb_window_side(const struct vb_window *window)
{
	return window->side;
}
