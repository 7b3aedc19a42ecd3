/* The window's life with one thread: limits, zeros, percentages, refusals, wiping. */
#define _GNU_SOURCE
#include "support.h"

#include <linux/io_uring.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static void test_refusals(void)
{
	const struct vb_zone_config good[] = {{8, 0, 0}}, empty[] = {{0, 0, 0}}, percent[] = {{8, 101, 0}};
	struct vb_config config = {.key = test_key, .instance = test_instance, .grace_ms = -1,
				   .zone_count = 1};
	const int no_cpu = 100000;
	struct vb_window *window = NULL;
	uint8_t data[16] = {0};

	config.zones = empty;
	CHECK(vb_window_create(&config, &window) == VB_INVALID);
	config.zones = percent;
	CHECK(vb_window_create(&config, &window) == VB_INVALID);
	config.zones = good;
	config.zone_count = VB_MAXIMUM_ZONES + 1;
	CHECK(vb_window_create(&config, &window) == VB_INVALID);
	config.zone_count = 1;
	config.handler_cpus = &no_cpu; /* there is no such CPU */
	config.handler_count = 1;
	CHECK(vb_window_create(&config, &window) == -EINVAL);

	window = open_window(good, 1);
	CHECK(vb_window_set_percent(window, 1, 0) == VB_INVALID);
	CHECK(vb_window_set_percent(window, 0, 101) == VB_INVALID);
	CHECK(vb_window_write(window, window->bytes, data, 1) == VB_INVALID);
	CHECK(vb_window_read(window, SIZE_MAX, data, 2) == VB_INVALID);
	CHECK(vb_window_write(window, 0, window->guest + 4096, 16) == VB_INVALID);
	CHECK(vb_window_read(window, 0, window->side, 16) == VB_INVALID);
	vb_window_close(window);
	CHECK(vb_window_read(window, 0, data, 1) == VB_CLOSED);
	vb_window_close(window);
	vb_window_free(window);
}

static void test_limits(void)
{
	CHECK(vb_zone_window(1000, 0) == 1000);
	CHECK(vb_zone_window(1000, 80) == 200);
	CHECK(vb_zone_window(1001, 80) == 200);
	CHECK(vb_zone_window(1000, 100) == VB_MINIMUM_WINDOW);
	CHECK(vb_zone_window(8, 100) == 8);
	CHECK(vb_zone_window(UINT32_MAX / 2, 1) == (uint32_t)((uint64_t)(UINT32_MAX / 2) * 99 / 100));
}

/* Zero pages count from their mapping, in runs; an evicted one comes back as zeros. */
static void test_zeros(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){1000, 90, 0}, 1);
	struct vb_stats stats;

	CHECK(window->guest[0] == 0);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK);
	CHECK(stats.plaintext == 100 / 8 && stats.zero_faults == 1 && stats.window == 100);
	check_invariant(window);
	for (size_t i = 0; i < window->bytes; i += 1024)
		CHECK(window->guest[i] == 0);
	check_invariant(window);
	for (size_t i = window->bytes; i >= 1024; i -= 1024)
		CHECK(window->guest[i - 1024] == 0);
	check_invariant(window);
	vb_window_free(window);
}

/* No page that is aside holds a byte of what was written, and each version is used once. */
static void test_ciphertext(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){512, 100, 0}, 1);
	static const char secret[] = "a secret that the guest has written";

	for (int round = 1; round <= 3; round++) {
		for (uint32_t i = 0; i < 512; i++)
			for (size_t at = 0; at + sizeof secret < VB_PAGE_SIZE_BYTES; at += 256)
				memcpy(window->guest + i * VB_PAGE_SIZE_BYTES + at, secret, sizeof secret);
		pthread_mutex_lock(&window->areas[0].lock);
		for (uint32_t i = 0; i < 512; i++) {
			struct vb_page *page = &window->pages[i];

			CHECK(page->version <= (unsigned)round);
			if (page->state == VB_ENCRYPTED)
				CHECK(!memmem(window->side + i * VB_PAGE_SIZE_BYTES, VB_PAGE_SIZE_BYTES, secret, 8));
		}
		pthread_mutex_unlock(&window->areas[0].lock);
		check_invariant(window);
	}
	vb_window_free(window);
}

static void test_percentages(void)
{
	const struct vb_zone_config zones[] = {{600, 0, 0}, {900, 50, 0}};
	struct vb_window *window = open_window(zones, 2);
	struct vb_stats stats;

	for (size_t i = 0; i < window->bytes; i += VB_PAGE_SIZE_BYTES)
		window->guest[i] = (uint8_t)(i / VB_PAGE_SIZE_BYTES);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.plaintext == 600);
	CHECK(vb_window_set_percent(window, 0, 75) == VB_OK);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK);
	CHECK(stats.percent == 75 && stats.window == 150 && stats.plaintext <= 150);
	CHECK(stats.plaintext_max == stats.plaintext);
	check_invariant(window);
	CHECK(vb_window_set_percent(window, 1, 100) == VB_OK);
	CHECK(vb_window_stats(window, 1, &stats) == VB_OK && stats.plaintext <= VB_MINIMUM_WINDOW);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	for (size_t i = 0; i < window->bytes; i += VB_PAGE_SIZE_BYTES)
		CHECK(window->guest[i] == (uint8_t)(i / VB_PAGE_SIZE_BYTES));
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.plaintext == 600);
	check_invariant(window);
	vb_window_free(window);
}

/* The hashes are those of the pages, wherever these are, and of nothing else. */
static void test_digests(void)
{
	const struct vb_zone_config zones[] = {{100, 0, 0}, {100, 100, 0}};
	struct vb_window *window = open_window(zones, 2);
	const size_t bytes = 150 * VB_PAGE_SIZE_BYTES + 5;
	uint8_t page[VB_PAGE_SIZE_BYTES], expected[VB_DIGEST_BYTES], digests[151 * VB_DIGEST_BYTES];

	for (size_t i = 0; i < 151; i++) {
		memset(page, (int)i + 1, sizeof page);
		CHECK(vb_window_write(window, i * sizeof page, page, sizeof page) == VB_OK);
	}
	CHECK(vb_window_digests(window, 0, bytes, "sha256", digests) == VB_OK);
	check_invariant(window);
	for (size_t i = 0; i < 151; i++) {
		memset(page, (int)i + 1, sizeof page);
		if (i == 150)
			memset(page + 5, 0, sizeof page - 5);
		CHECK(EVP_Digest(page, sizeof page, expected, NULL, EVP_sha256(), NULL) == 1);
		CHECK(memcmp(expected, digests + i * VB_DIGEST_BYTES, VB_DIGEST_BYTES) == 0);
	}
	CHECK(vb_window_digests(window, 0, 0, "sha256", digests) == VB_OK);
	CHECK(vb_window_digests(window, 1, 1, "sha256", digests) == VB_INVALID);
	CHECK(vb_window_digests(window, VB_PAGE_SIZE_BYTES, window->bytes, "sha256", digests) == VB_INVALID);
	/* The hash of the last page, of which a part is measured, would lie in the window. */
	CHECK(vb_window_digests(window, 0, VB_PAGE_SIZE_BYTES + 5, "sha256", window->guest - VB_DIGEST_BYTES) ==
	      VB_INVALID);
	CHECK(vb_window_digests(window, 0, 1, "sha512", digests) == VB_NO_CIPHER);
	CHECK(vb_window_digests(window, 0, 1, "none such", digests) == VB_NO_CIPHER);
	vb_window_close(window);
	CHECK(vb_window_digests(window, 0, 1, "sha256", digests) == VB_CLOSED);
	vb_window_free(window);
}

/* An open zone is the kernel's, in huge pages where it can; with the first rise each of its pages is counted. */
static void test_open(void)
{
	const struct vb_zone_config zones[] = {{4096, 0, 0}, {512, 90, 0}};
	const size_t hole = 2048 * VB_PAGE_SIZE_BYTES;
	struct vb_window *window = open_window(zones, 2);
	struct vb_stats stats;
	uint8_t data[3 * VB_PAGE_SIZE_BYTES], back[sizeof data];

	CHECK((uintptr_t)window->guest % (2 << 20) == 0);
	memset(data, 0xa5, sizeof data);
	CHECK(vb_window_write(window, 4095 * VB_PAGE_SIZE_BYTES - 7, data, sizeof data) == VB_OK); /* into the next zone */
	for (size_t i = 0; i < 1024; i++)
		window->guest[i * VB_PAGE_SIZE_BYTES] = (uint8_t)i;
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK);
	CHECK(stats.faults == 0 && stats.plaintext >= 1026 && stats.plaintext <= 4096);
	CHECK(stats.plaintext == present(window->guest, 4096));
	check_invariant(window);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK && window->areas[0].open);

	CHECK(vb_window_set_percent(window, 0, 75) == VB_OK && !window->areas[0].open);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.plaintext <= 1024 && stats.evictions);
	check_invariant(window);
	CHECK(window->guest[hole] == 0);
	for (size_t i = 0; i < 1024; i++)
		CHECK(window->guest[i * VB_PAGE_SIZE_BYTES] == (uint8_t)i);
	CHECK(vb_window_read(window, 4095 * VB_PAGE_SIZE_BYTES - 7, back, sizeof back) == VB_OK);
	CHECK(memcmp(data, back, sizeof data) == 0);
	check_invariant(window);

	/* At 0 percent it is the kernel's again, when all of it is there. */
	CHECK(vb_window_set_percent(window, 0, 0) == VB_OK);
	await_open(window, 0);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.open && stats.percent == 0);
	for (size_t i = 0; i < 1024; i++)
		CHECK(window->guest[i * VB_PAGE_SIZE_BYTES] == (uint8_t)i);
	window->guest[hole] = 9; /* where nothing was: no handler is asked */
	check_invariant(window);
	CHECK(vb_window_set_percent(window, 0, 90) == VB_OK && window->guest[hole] == 9);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && !stats.open && stats.plaintext <= 409);
	for (size_t i = 0; i < 1024; i++)
		CHECK(window->guest[i * VB_PAGE_SIZE_BYTES] == (uint8_t)i);
	check_invariant(window);
	vb_window_free(window);
}

/*
 * Locked memory cannot be dropped. Where it is not locked, a page that was dropped reads as zero, and stops counting
 * when it is met.
 */
static void test_dropped(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){256, 50, 0}, 1);

	memset(window->guest, 1, 64 * VB_PAGE_SIZE_BYTES);
	CHECK(madvise(window->guest, VB_PAGE_SIZE_BYTES, MADV_DONTNEED) == -1);
	/* By the system call: the sanitizers turn munlock into nothing. */
	CHECK(syscall(SYS_munlock, window->guest, window->bytes) == 0);
	CHECK(syscall(SYS_munlock, window->side, window->bytes) == 0);
	CHECK(madvise(window->guest, 64 * VB_PAGE_SIZE_BYTES, MADV_DONTNEED) == 0);
	memset(window->guest + 64 * VB_PAGE_SIZE_BYTES, 2, 128 * VB_PAGE_SIZE_BYTES);
	CHECK(window->guest[0] == 0);
	check_invariant(window);
	vb_window_free(window);
}

/* Holds pages as a device's DMA mapping would: an io_uring with registered buffers. Gives its descriptor. */
static int pin(void *start, size_t bytes)
{
	struct io_uring_params parameters = {0};
	struct iovec buffer = {start, bytes};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &parameters);

	CHECK(ring >= 0);
	CHECK(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) == 0);
	return ring;
}

/* Pinned pages stay, count, and are passed over; what they make impossible is refused. */
static void test_pinned(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){400, 50, 0}, 1);
	struct vb_stats stats;
	uint8_t data[VB_PAGE_SIZE_BYTES];
	int ring;

	memset(window->guest, 3, window->bytes);
	ring = pin(window->guest, 100 * VB_PAGE_SIZE_BYTES);
	for (int round = 0; round < 2; round++)
		for (size_t i = 0; i < 400; i++)
			CHECK(vb_window_read(window, i * sizeof data, data, sizeof data) == VB_OK && data[9] == 3);
	CHECK(present(window->guest, 100) == 100);
	check_invariant(window);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.busy > 0);
	CHECK(vb_window_set_percent(window, 0, 90) == VB_PINNED);
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK);
	CHECK(stats.percent == 50 && stats.window == 200 && stats.plaintext == 100);
	CHECK(vb_window_set_percent(window, 0, 75) == VB_OK); /* a window of just the pinned pages */
	CHECK(vb_window_read(window, 200 * sizeof data, data, 1) == VB_PINNED);
	close(ring);
	for (int i = 0; i < 1000 && vb_window_set_percent(window, 0, 90) == VB_PINNED; i++)
		usleep(1000); /* the ring is taken down in the background */
	CHECK(vb_window_stats(window, 0, &stats) == VB_OK && stats.percent == 90 && stats.plaintext <= 64);
	for (size_t i = 0; i < 400; i++)
		CHECK(window->guest[i * sizeof data] == 3);
	check_invariant(window);
	vb_window_free(window);
}

/* After close the addresses are reserved and inaccessible, and the zones have no keys. */
static void test_close(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){256, 50, 0}, 1);
	unsigned char vector[256];
	int ends[2];

	memset(window->guest, 7, window->bytes);
	vb_window_close(window);
	CHECK(window->calls.ciphers[0] == NULL && window->side == NULL);
	CHECK(mincore(window->guest, window->bytes, vector) == 0); /* mapped, */
	CHECK(pipe(ends) == 0 && write(ends[1], window->guest, 1) == -1 && errno == EFAULT); /* not readable */
	close(ends[0]);
	close(ends[1]);
	vb_window_free(window);
}

/* Guest memory is not inherited. */
static void test_fork(void)
{
	struct vb_window *window = open_window(&(struct vb_zone_config){64, 0, 0}, 1);
	int result = 0;
	pid_t child;

	window->guest[0] = 1;
	child = fork();
	if (child == 0) {
		unsigned char vector[1];

		_exit(mincore(window->guest, VB_PAGE_SIZE_BYTES, vector) == -1 && errno == ENOMEM ? 0 : 1);
	}
	CHECK(waitpid(child, &result, 0) == child && result == 0);
	vb_window_free(window);
}

int main(void)
{
	test_limits();
	test_refusals();
	test_zeros();
	test_ciphertext();
	test_percentages();
	test_open();
	test_digests();
	test_dropped();
	test_pinned();
	test_close();
	test_fork();
	return 0;
}
