/* Somebody changes ciphertext in DRAM. Every way is found, nothing is handed out, the window stops. */
#define _GNU_SOURCE
#include "support.h"

enum { PAGES = 256 };

static uint8_t *side(struct vb_window *window, uint32_t page)
{
	return window->side + page * VB_PAGE_SIZE_BYTES;
}

/* Each page with contents of its own, written in order: the first PAGES - 64 are then encrypted. */
static struct vb_window *filled_with_grace(int grace_ms)
{
	struct vb_window *window = open_with_grace(&(struct vb_zone_config){PAGES, 100, 0}, 1, grace_ms);
	uint8_t data[VB_PAGE_SIZE_BYTES];

	for (uint32_t i = 0; i < PAGES; i++) {
		memset(data, (int)i, sizeof data);
		CHECK(vb_window_write(window, i * sizeof data, data, sizeof data) == VB_OK);
	}
	CHECK(entry_of(window, 1).state == VB_ENCRYPTED && entry_of(window, 2).state == VB_ENCRYPTED);
	return window;
}

static struct vb_window *filled(void)
{
	return filled_with_grace(-1);
}

static void expect_failure(struct vb_window *window, uint32_t page)
{
	uint8_t data[VB_PAGE_SIZE_BYTES] = {0x5a};
	struct vb_failure failure;
	struct pollfd end = {.fd = vb_window_failure_fd(window), .events = POLLIN};
	int status = vb_window_read(window, page * sizeof data, data, sizeof data);

	CHECK(status == VB_AUTHENTICATION);
	CHECK(data[0] == 0x5a);
	failure = vb_window_failure(window);
	CHECK(failure.status == VB_AUTHENTICATION && failure.zone == 0 && failure.page == page);
	CHECK(poll(&end, 1, 0) == 1);
	CHECK(entry_of(window, page).state == VB_ENCRYPTED);
	CHECK(present(window->guest + page * sizeof data, 1) == 0);
	/* From then on nothing is served, pages that nobody touched included. */
	CHECK(vb_window_read(window, 2 * sizeof data, data, 1) == VB_FAILED);
	CHECK(vb_window_write(window, 2 * sizeof data, data, 1) == VB_FAILED);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_FAILED);
	vb_window_free(window);
}

static void test_flipped_bit(void)
{
	struct vb_window *window = filled();

	side(window, 1)[4095] ^= 0x80;
	expect_failure(window, 1);
}

static void test_changed_tag(void)
{
	struct vb_window *window = filled();

	window->pages[1].tag[0] ^= 1;
	expect_failure(window, 1);
}

static void test_swapped_pages(bool with_metadata)
{
	struct vb_window *window = filled();
	uint8_t data[VB_PAGE_SIZE_BYTES];
	struct vb_page page = window->pages[1];

	memcpy(data, side(window, 1), sizeof data);
	memcpy(side(window, 1), side(window, 2), sizeof data);
	memcpy(side(window, 2), data, sizeof data);
	if (with_metadata) {
		window->pages[1] = window->pages[2];
		window->pages[2] = page;
	}
	expect_failure(window, 1);
}

static void test_older_version(bool with_tag, bool with_version)
{
	struct vb_window *window = filled();
	uint8_t older[VB_PAGE_SIZE_BYTES], one = 1;
	struct vb_page page = window->pages[1];

	memcpy(older, side(window, 1), sizeof older);
	CHECK(vb_window_write(window, VB_PAGE_SIZE_BYTES, &one, 1) == VB_OK);
	/* Push page 1 out again. It has come back, so that it may stay for longer than others. */
	for (uint32_t i = 0; entry_of(window, 1).state != VB_ENCRYPTED; i++) {
		CHECK(i < 100 * PAGES);
		CHECK(vb_window_write(window, (64 + i % (PAGES - 64)) * VB_PAGE_SIZE_BYTES, &one, 1) == VB_OK);
	}
	CHECK(entry_of(window, 1).state == VB_ENCRYPTED && entry_of(window, 1).version == page.version + 1);
	memcpy(side(window, 1), older, sizeof older);
	if (with_tag)
		memcpy(window->pages[1].tag, page.tag, VB_TAG_BYTES);
	if (with_version)
		window->pages[1].version = page.version;
	expect_failure(window, 1);
}

static void *touch(void *byte)
{
	volatile uint8_t *guest = byte;

	(void)*guest; /* waits for ever: the parent ends by close, which delivers SIGSEGV */
	puts("a page that failed was handed out");
	fflush(stdout);
	_exit(9);
}

/* A thread that faults on a changed page: blocked until the window is closed, then SIGSEGV. */
static void test_blocked_thread(void)
{
	int result = 0;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		struct vb_window *window = filled();
		struct pollfd end = {.fd = vb_window_failure_fd(window), .events = POLLIN};
		pthread_t thread;

		signal(SIGSEGV, SIG_DFL);
		side(window, 1)[0] ^= 1;
		CHECK(pthread_create(&thread, NULL, touch, window->guest + VB_PAGE_SIZE_BYTES) == 0);
		CHECK(poll(&end, 1, 10000) == 1);
		CHECK(vb_window_failure(window).page == 1);
		usleep(50000);
		vb_window_close(window);
		sleep(10);
		_exit(8);
	}
	CHECK(waitpid(child, &result, 0) == child);
	CHECK(WIFSIGNALED(result) && WTERMSIG(result) == SIGSEGV);
}

/* A failed window that nobody closes, because the thread that would is the one that waits. */
static void test_grace(void)
{
	int result = 0;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		struct vb_window *window = filled_with_grace(200);

		side(window, 1)[0] ^= 1;
		touch(window->guest + VB_PAGE_SIZE_BYTES);
	}
	CHECK(waitpid(child, &result, 0) == child);
	CHECK(WIFEXITED(result) && WEXITSTATUS(result) == VB_EXIT_FAILED);
}

int main(void)
{
	test_flipped_bit();
	test_changed_tag();
	test_swapped_pages(false);
	test_swapped_pages(true);
	test_older_version(false, false);
	test_older_version(true, false);
	test_older_version(false, true);
	test_blocked_thread();
	test_grace();
	return 0;
}
