/* What this process itself writes into guest memory and reads out of it, without a page fault. */
#include "window_internal.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "status.h"

/* Most bytes of an open zone that are used in one step: so long a rise of its percentage may wait. */
#define OPEN_STEP ((size_t)1 << 20)

/* A buffer in the window would wait for a page while another is held. */
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

/* A guest may change its memory while we read it, and read it while we write: a race that is meant, and no bug to be found. */
__attribute__((no_sanitize_thread)) static void copy(void *to, const void *from, size_t bytes)
{
#ifdef __SANITIZE_THREAD__
	for (size_t i = 0; i < bytes; i++)
		((volatile uint8_t *)to)[i] = ((const volatile uint8_t *)from)[i];
#else
	memcpy(to, from, bytes);
#endif
}

/* Brings the page of this offset in; VB_OK: it stays until vb_let_go. */
static int hold(struct vb_window *window, size_t offset)
{
	int status;

	if (atomic_load(&window->closing))
		return VB_CLOSED;
	pthread_mutex_lock(&window->calls.use);
	status = vb_hold(window, &window->calls, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
	pthread_mutex_unlock(&window->calls.use);
	return status;
}

static void let_go(struct vb_window *window, size_t offset)
{
	vb_let_go(window, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
}

static size_t part_of(size_t offset, size_t bytes)
{
	size_t rest = VB_PAGE_SIZE_BYTES - offset % VB_PAGE_SIZE_BYTES;

	return rest < bytes ? rest : bytes;
}

/* As many bytes of an open zone from `offset` on as may be used before vb_let_go, or 0: it is not open, or the window has ended. */
static size_t hold_open(struct vb_window *window, size_t offset, size_t bytes)
{
	struct vb_area *area = vb_area_of(window, (uint32_t)(offset / VB_PAGE_SIZE_BYTES));
	size_t end = vb_offset(area->zone.first) + vb_offset(area->zone.count);

	if (bytes > end - offset)
		bytes = end - offset;
	if (bytes > OPEN_STEP)
		bytes = OPEN_STEP;
	pthread_mutex_lock(&area->lock);
	if (!area->open || atomic_load(&window->failed) || atomic_load(&window->closing))
		bytes = 0;
	area->copies += bytes != 0;
	pthread_mutex_unlock(&area->lock);
	return bytes;
}

/* Holds what comes next: as much as there is of an open zone, or of one page; VB_OK: *part bytes, until vb_let_go. */
static int hold_some(struct vb_window *window, size_t offset, size_t bytes, size_t *part)
{
	*part = hold_open(window, offset, bytes);
	if (*part)
		return VB_OK;
	*part = part_of(offset, bytes);
	return hold(window, offset);
}

/* Whole pages that were never touched, with their contents in one step. */
static int fill_pages(struct vb_window *window, size_t offset, const uint8_t *data, size_t bytes, size_t *filled)
{
	size_t whole = offset % VB_PAGE_SIZE_BYTES ? 0 : bytes / VB_PAGE_SIZE_BYTES;
	uint32_t count = 0;
	int status = VB_OK;

	if (whole) {
		pthread_mutex_lock(&window->calls.use);
		status = vb_page_fill(window, &window->calls, (uint32_t)(offset / VB_PAGE_SIZE_BYTES),
				      whole < VB_RUN ? (uint32_t)whole : VB_RUN, data, &count);
		pthread_mutex_unlock(&window->calls.use);
	}
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
		size_t part = hold_open(window, offset, bytes);

		if (part) {
			copy(window->guest + offset, from, part);
			let_go(window, offset);
		} else {
			status = fill_pages(window, offset, from, bytes, &part);
		}
		if (!status && !part) {
			part = part_of(offset, bytes);
			status = hold(window, offset);
			if (!status) {
				copy(window->guest + offset, from, part);
				let_go(window, offset);
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
		size_t part;

		status = hold_some(window, offset, bytes, &part);
		if (status)
			break;
		copy(to, window->guest + offset, part);
		let_go(window, offset);
		offset += part;
		to += part;
		bytes -= part;
	}
	vb_leave(window);
	return status;
}

/* The hash of each page of what is held, the last of them padded with zeros. */
static int hash_pages(const uint8_t *memory, size_t bytes, const EVP_MD *hash, EVP_MD_CTX *context, uint8_t *out)
{
	static const uint8_t zeros[VB_PAGE_SIZE_BYTES];
	bool done = true;

	for (; bytes && done; out += VB_DIGEST_BYTES) {
		size_t part = bytes < VB_PAGE_SIZE_BYTES ? bytes : VB_PAGE_SIZE_BYTES;

		done = EVP_DigestInit_ex(context, hash, NULL) == 1 && EVP_DigestUpdate(context, memory, part) == 1 &&
		       EVP_DigestUpdate(context, zeros, VB_PAGE_SIZE_BYTES - part) == 1 &&
		       EVP_DigestFinal_ex(context, out, NULL) == 1;
		memory += part;
		bytes -= part;
	}
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
			size_t part;

			status = hold_some(window, offset, bytes, &part);
			if (status)
				break;
			status = hash_pages(window->guest + offset, part, hash, context, out);
			let_go(window, offset);
			out += (part + VB_PAGE_SIZE_BYTES - 1) / VB_PAGE_SIZE_BYTES * VB_DIGEST_BYTES;
			offset += part;
			bytes -= part;
		}
		vb_leave(window);
	}
	EVP_MD_CTX_free(context);
	EVP_MD_free(hash);
	return status;
}
