/* The thread that answers page faults. It never takes a lock of the caller's (Python's, say). */
#define _GNU_SOURCE
#include "window_internal.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "status.h"
#include "uffd.h"

#define BATCH 32
#define PINNED_RETRIES 10000 /* of one millisecond */

/* For what has to do with no page: page 0 stands for all. */
static int fail(struct vb_window *window, int status)
{
	vb_lock(window);
	vb_fail(window, status, 0);
	vb_unlock(window);
	return status;
}

/* Answers one fault. A fault that cannot be answered fails the window and stays unanswered. */
static int serve(struct vb_window *window, uintptr_t address)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	uintptr_t offset = address - (uintptr_t)window->guest;
	uint32_t page;
	int status;

	if (offset >= window->bytes)
		return fail(window, VB_INVALID);
	page = (uint32_t)(offset / VB_PAGE_SIZE_BYTES);
	for (int i = 0;; i++) {
		vb_lock(window);
		status = vb_page_in(window, page);
		if (status == VB_PINNED && i == PINNED_RETRIES)
			vb_fail(window, status, page);
		vb_unlock(window);
		if (status != VB_PINNED || i == PINNED_RETRIES || atomic_load(&window->closing))
			return status;
		nanosleep(&pause, NULL); /* pinned pages are usually let go at once */
	}
}

static int serve_all(struct vb_window *window)
{
	uintptr_t addresses[BATCH];
	int count = vb_uffd_read(window->uffd, addresses, BATCH);
	int status = count < 0 ? fail(window, count) : VB_OK;

	for (int i = 0; i < count && !status; i++)
		status = serve(window, addresses[i]);
	return status;
}

/* As poll: how many are ready, 0 when the time is over, or -errno. */
static int wait_for(struct pollfd *ends, nfds_t count, int timeout)
{
	int ready;

	do
		ready = poll(ends, count, timeout);
	while (ready < 0 && errno == EINTR);
	return ready < 0 ? -errno : ready;
}

static void *handler_main(void *argument)
{
	struct vb_window *window = argument;
	struct pollfd ends[] = {
		{.fd = window->wake_fd, .events = POLLIN},
		{.fd = window->uffd, .events = POLLIN},
	};
	int status = VB_OK;

	while (!status) {
		int ready = wait_for(ends, 2, -1);

		if (ready < 0)
			status = fail(window, ready);
		else if (ends[0].revents)
			return NULL;
		else if (ends[1].revents)
			status = serve_all(window);
	}
	if (wait_for(ends, 1, window->grace_ms) == 0) { /* failed, and nobody closes: see vb_config.grace_ms */
		vb_lock(window);
		vb_wipe(window);
		_exit(VB_EXIT_FAILED);
	}
	return NULL;
}

int vb_handler_start(struct vb_window *window, int cpu)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error = pthread_attr_init(&attributes);

	if (error)
		return -error;
	if (cpu >= 0) {
		cpu_set_t *cpus = CPU_ALLOC((size_t)cpu + 1);
		size_t bytes = CPU_ALLOC_SIZE((size_t)cpu + 1);

		if (!cpus) {
			pthread_attr_destroy(&attributes);
			return -ENOMEM;
		}
		CPU_ZERO_S(bytes, cpus);
		CPU_SET_S((size_t)cpu, bytes, cpus);
		error = pthread_attr_setaffinity_np(&attributes, bytes, cpus);
		CPU_FREE(cpus);
	}
	if (!error) {
		sigfillset(&all); /* signals are for the caller's threads */
		pthread_sigmask(SIG_SETMASK, &all, &before);
		error = pthread_create(&window->handler, &attributes, handler_main, window);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	pthread_attr_destroy(&attributes);
	if (error)
		return -error;
	window->handler_runs = true;
	pthread_setname_np(window->handler, "pager");
	return VB_OK;
}

void vb_handler_stop(struct vb_window *window)
{
	const uint64_t one = 1;

	if (!window->handler_runs)
		return;
	while (write(window->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
	pthread_join(window->handler, NULL);
	window->handler_runs = false;
}
