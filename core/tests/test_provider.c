/* Ciphers of another provider: batches for an accelerator, one that answers wrongly, one that fails. */
#define _GNU_SOURCE
#include "support.h"

/* Ciphers in a thread of its own, as a device would: batches go in, and are done later. */
struct device {
	void *session;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct vb_message *messages;
	size_t count;
	bool encrypt, busy, stop;
	int status;
	size_t failed;
};

static atomic_uint sealed_batches, sealed_pages, largest_batch, wrong_answers, failing;

static void *device_main(void *argument)
{
	struct device *device = argument;

	pthread_mutex_lock(&device->lock);
	while (!device->stop) {
		if (device->busy) {
			usleep(20);
			device->status = vb_libcrypto.begin(device->session, device->messages, device->count, device->encrypt);
			if (!device->status)
				device->status = vb_libcrypto.finish(device->session, &device->failed);
			if (atomic_load(&failing) && device->encrypt)
				device->status = VB_CRYPTO;
			if (atomic_load(&wrong_answers) && !device->encrypt && device->count)
				device->status = VB_AUTHENTICATION;
			device->busy = false;
			pthread_cond_broadcast(&device->changed);
		}
		pthread_cond_wait(&device->changed, &device->lock);
	}
	pthread_mutex_unlock(&device->lock);
	return NULL;
}

static int device_open(enum vb_cipher_kind kind, const uint8_t *key, size_t key_bytes, void **session)
{
	struct device *device = calloc(1, sizeof *device);
	int status = vb_libcrypto.open(kind, key, key_bytes, &device->session);

	if (status) {
		free(device);
		return status;
	}
	pthread_mutex_init(&device->lock, NULL);
	pthread_cond_init(&device->changed, NULL);
	CHECK(pthread_create(&device->thread, NULL, device_main, device) == 0);
	*session = device;
	return VB_OK;
}

static void device_close(void *session)
{
	struct device *device = session;

	pthread_mutex_lock(&device->lock);
	device->stop = true;
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
	pthread_join(device->thread, NULL);
	vb_libcrypto.close(device->session);
	pthread_mutex_destroy(&device->lock);
	pthread_cond_destroy(&device->changed);
	free(device);
}

static int device_begin(void *session, struct vb_message *messages, size_t count, bool encrypt)
{
	struct device *device = session;

	pthread_mutex_lock(&device->lock);
	CHECK(!device->busy && count);
	device->messages = messages;
	device->count = count;
	device->encrypt = encrypt;
	device->busy = true;
	if (encrypt && messages->bytes == VB_PAGE_SIZE_BYTES) {
		atomic_fetch_add(&sealed_batches, 1);
		atomic_fetch_add(&sealed_pages, (unsigned)count);
		if (count > atomic_load(&largest_batch))
			atomic_store(&largest_batch, (unsigned)count);
	}
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
	return VB_OK;
}

static int device_finish(void *session, size_t *failed)
{
	struct device *device = session;
	int status;

	pthread_mutex_lock(&device->lock);
	while (device->busy)
		pthread_cond_wait(&device->changed, &device->lock);
	status = device->status;
	*failed = device->failed;
	pthread_mutex_unlock(&device->lock);
	return status;
}

static const struct vb_provider device_provider = {
	.name = "test device", .open = device_open, .close = device_close, .begin = device_begin, .finish = device_finish};

/* All encryption goes through the provider, in batches. */
static void test_provider(void)
{
	struct vb_window *window =
		open_configured((struct vb_config){.provider = &device_provider}, &(struct vb_zone_config){2000, 75, 0});
	struct vb_stats stats;

	for (uint32_t i = 0; i < 2000; i++)
		memset(page_of(window, i * 7 % 2000), (int)(i * 7 % 2000), 16);
	for (uint32_t i = 0; i < 2000; i++)
		CHECK(*page_of(window, i) == (uint8_t)i);
	await_quiet(window);
	stats = stats_of(window, 0);
	CHECK(stats.evictions == atomic_load(&sealed_pages) && stats.evictions > 2000);
	CHECK(atomic_load(&largest_batch) >= 16);
	CHECK(atomic_load(&sealed_pages) >= 8 * atomic_load(&sealed_batches));
	check_invariant(window);
	vb_window_free(window);
}

/* A device that answers wrongly at its self-test is not used. */
static void test_wrong_provider(void)
{
	struct vb_config config = {.provider = &device_provider, .zones = &(struct vb_zone_config){100, 50, 0},
				   .zone_count = 1, .key = test_key, .instance = test_instance, .grace_ms = -1};
	struct vb_window *window = NULL;

	atomic_store(&wrong_answers, 1);
	CHECK(vb_window_create(&config, &window) == VB_SELF_TEST && !window);
	atomic_store(&wrong_answers, 0);
}

static void *read_page(void *argument)
{
	uint8_t byte;

	CHECK(vb_window_read(argument, 0, &byte, 1) != VB_CLOSED);
	return NULL;
}

/* A device that fails while pages are on their way: the window fails, says so, and whoever waits for them ends. */
static void test_failing_provider(void)
{
	struct vb_window *window =
		open_configured((struct vb_config){.provider = &device_provider}, &(struct vb_zone_config){600, 80, 0});
	uint8_t data[VB_PAGE_SIZE_BYTES] = {1};
	pthread_t readers[3];
	int status = VB_OK;

	for (uint32_t i = 0; i < 600; i++)
		CHECK(vb_window_write(window, vb_offset(i), data, sizeof data) == VB_OK);
	atomic_store(&failing, 1);
	for (size_t i = 0; i < 3; i++)
		CHECK(pthread_create(&readers[i], NULL, read_page, window) == 0);
	for (uint32_t i = 0; i < 600 && !status; i++)
		status = vb_window_write(window, vb_offset(i), data, sizeof data);
	CHECK(status == VB_CRYPTO || status == VB_FAILED);
	CHECK(vb_window_failure(window).status == VB_CRYPTO);
	CHECK(vb_window_discard(window, 0, window->bytes) == VB_FAILED);
	CHECK(vb_window_pin(window, 0, VB_PAGE_SIZE_BYTES) == VB_FAILED);
	CHECK(vb_window_unpin(window, 0, VB_PAGE_SIZE_BYTES) == VB_FAILED);
	CHECK(vb_window_set_percent(window, 0, 0) == VB_FAILED && vb_window_sample(window, 0, true) == VB_FAILED);
	for (size_t i = 0; i < 3; i++)
		CHECK(pthread_join(readers[i], NULL) == 0);
	vb_window_close(window);
	atomic_store(&failing, 0);
	vb_window_free(window);
}

int main(void)
{
	test_provider();
	test_wrong_provider();
	test_failing_provider();
	return 0;
}
