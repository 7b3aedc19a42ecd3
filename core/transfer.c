/* What this process itself writes into guest memory and reads out of it, without a page fault. */
#include "window_internal.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "status.h"

/* Most bytes that are copied while the lock is held. */
#define COPY_STEP ((size_t)1 << 20)

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
	int status = vb_enter(window);

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
	vb_leave(window);
	return status;
}

int vb_window_read(struct vb_window *window, size_t offset, void *data, size_t bytes)
{
	uint8_t *to = data;
	int status = vb_enter(window);

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
	vb_leave(window);
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
	int status = vb_enter(window);

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
		vb_leave(window);
	}
	EVP_MD_CTX_free(context);
	EVP_MD_free(hash);
	return status;
}
