/*
 * The threads that answer page faults. None ever takes a lock of the caller's (Python's, say).
 *
 * A fault is answered soonest by a thread on the CPU where it happened: the faulting thread has just stopped there. There is one
 * handler for each CPU, but a fault wakes all that wait for one; so only those wait, are `enlisted`, whose CPU has faults. One
 * that answers a fault of a thread that belongs to another CPU counts it there, and enlists that CPU's handler when there are
 * several; one whose CPU has had none for long is dismissed. At least one always waits.
 */
#define _GNU_SOURCE
#include "window_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "erase.h"
#include "status.h"
#include "uffd.h"

/* Interrupts a handler that waits for faults. */
#define BELL (SIGRTMIN + 9)
#define PINNED_RETRIES 10000 /* of one millisecond */
/* Faults of another CPU, answered here, until its own handler is enlisted. */
#define ENLIST 8
/* Faults answered since a CPU had one, until its handler is dismissed. */
#define DISMISS 1024
#define CACHE 64
/* Faults after which it is asked again where a thread may run. */
#define CACHE_LIFE 4096

/* Where threads run, as a handler knows it: those that may run on one CPU only. */
struct places {
	struct {
		int thread;
		int cpu; /* -1: on several */
	} entry[CACHE];
	unsigned life;
};

int vb_lane_init(struct vb_lane *lane)
{
	return -pthread_mutex_init(&lane->use, NULL);
}

void vb_lane_clear(struct vb_lane *lane)
{
	for (size_t i = 0; i < VB_MAXIMUM_ZONES; i++) {
		vb_cipher_destroy(lane->ciphers[i]);
		lane->ciphers[i] = NULL;
	}
}

/* --- who answers --------------------------------------------------------------------------------------------- */

static int only_cpu_of(int thread)
{
	cpu_set_t cpus;

	if (!thread || sched_getaffinity(thread, sizeof cpus, &cpus) != 0 || CPU_COUNT(&cpus) != 1)
		return -1;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &cpus))
			return cpu;
	return -1;
}

static int cpu_of(struct places *places, int thread)
{
	unsigned slot = (unsigned)thread % CACHE;

	if (!places->life--) {
		*places = (struct places){.life = CACHE_LIFE};
	}
	if (places->entry[slot].thread != thread) {
		places->entry[slot].thread = thread;
		places->entry[slot].cpu = only_cpu_of(thread);
	}
	return places->entry[slot].cpu;
}

/* With the roster's lock held: whether another than `self` waits for faults. */
static bool others_wait(const struct vb_window *window, const struct vb_handler *self)
{
	for (size_t i = 0; i < window->handler_count; i++)
		if (&window->handlers[i] != self && window->handlers[i].enlisted)
			return true;
	return false;
}

/* Notes where a fault came from, and sees to it that the right handlers wait for the next ones. */
static void note(struct vb_window *window, struct vb_handler *self, struct places *places, int thread)
{
	uint64_t now = atomic_fetch_add_explicit(&window->answered, 1, memory_order_relaxed) + 1;
	int cpu;

	if (window->handler_count < 2)
		return;
	cpu = cpu_of(places, thread);
	for (size_t i = 0; i < window->handler_count; i++) {
		struct vb_handler *other = &window->handlers[i];

		if (other->cpu == cpu) {
			atomic_store_explicit(&other->seen, now, memory_order_relaxed);
			if (other != self && atomic_fetch_add(&other->demand, 1) >= ENLIST) {
				atomic_store(&other->demand, 0);
				pthread_mutex_lock(&window->roster);
				if (!other->enlisted && !atomic_load(&other->gone)) {
					other->enlisted = true;
					pthread_cond_signal(&other->call);
				}
				pthread_mutex_unlock(&window->roster);
			}
		} else if (other != self && now % 64 == 0 &&
			   now > atomic_load_explicit(&other->seen, memory_order_relaxed) + DISMISS) {
			pthread_mutex_lock(&window->roster);
			if (other->enlisted && others_wait(window, other) && !atomic_load(&other->gone)) {
				atomic_store(&other->dismissed, true);
				pthread_kill(other->thread, BELL);
			}
			pthread_mutex_unlock(&window->roster);
		}
	}
}

/* Waits until this handler is enlisted. False: the window is closing. */
static bool await_call(struct vb_window *window, struct vb_handler *self)
{
	bool enlisted;

	pthread_mutex_lock(&window->roster);
	if (atomic_exchange(&self->dismissed, false) && others_wait(window, self)) {
		self->enlisted = false;
		atomic_store(&self->demand, 0);
	}
	while (!self->enlisted && !atomic_load(&window->closing))
		pthread_cond_wait(&self->call, &window->roster);
	enlisted = !atomic_load(&window->closing);
	pthread_mutex_unlock(&window->roster);
	return enlisted;
}

/* --- answers ------------------------------------------------------------------------------------------------- */

/* Answers one fault. A fault that cannot be answered fails the window and stays unanswered. */
static int serve(struct vb_window *window, struct vb_lane *lane, uintptr_t address)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	uintptr_t offset = address - (uintptr_t)window->guest;
	uint64_t start = vb_now_ns();
	uint32_t page;
	int status;

	if (offset >= window->bytes)
		return vb_fail(window, VB_INVALID, 0); /* page 0 stands for all */
	page = (uint32_t)(offset / VB_PAGE_SIZE_BYTES);
	vb_prefetch(window->side + offset, VB_PAGE_SIZE_BYTES); /* most probably it is encrypted */
	for (int i = 0;; i++) {
		status = vb_answer(window, lane, page, start);
		if (status != VB_PINNED || atomic_load(&window->closing))
			return status;
		if (i == PINNED_RETRIES)
			return vb_fail(window, status, page);
		nanosleep(&pause, NULL); /* pages that the kernel holds are usually let go at once */
	}
}

/* Answers faults until the window closes or fails. */
static int serve_all(struct vb_window *window, struct vb_handler *self)
{
	struct places places = {0};
	/* One after the other where several can take one each. */
	const int limit = window->handler_count > 1 ? 1 : 16;
	int status = VB_OK;

	while (!status && await_call(window, self)) {
		while (!status && !atomic_load(&self->dismissed) && !atomic_load(&window->closing)) {
			struct vb_fault faults[16];
			int count = vb_uffd_read(window->uffd, faults, limit);

			if (count < 0)
				status = vb_fail(window, count, 0);
			for (int i = 0; i < count && !status; i++) {
				status = serve(window, &self->lane, faults[i].address);
				note(window, self, &places, faults[i].thread);
			}
		}
	}
	return status;
}

/* After a failure: waits for the window to be closed, but see vb_config.grace_ms. */
static void await_end(struct vb_window *window)
{
	struct timespec end;
	bool mine;
	int error = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += window->grace_ms / 1000;
	end.tv_nsec += window->grace_ms % 1000 * 1000000L;
	if (end.tv_nsec >= 1000000000L) {
		end.tv_sec++;
		end.tv_nsec -= 1000000000L;
	}
	pthread_mutex_lock(&window->roster);
	mine = window->grace_ms >= 0 && !window->grace_runs;
	window->grace_runs |= mine;
	while (!atomic_load(&window->closing) && error != ETIMEDOUT)
		error = mine ? pthread_cond_timedwait(&window->end, &window->roster, &end)
			     : pthread_cond_wait(&window->end, &window->roster);
	if (!atomic_load(&window->closing)) { /* nobody else touches memory or keys any more: the process ends */
		vb_wipe(window);
		_exit(VB_EXIT_FAILED);
	}
	pthread_mutex_unlock(&window->roster);
}

static void *handler_main(void *argument)
{
	struct vb_handler *self = argument;
	struct vb_window *window = self->window;
	/* A handler that wakes does not take the CPU from a vCPU that runs: it comes when this one waits. */
	const struct sched_param parameters = {0};

	/* From here, not from outside: for another thread's name the C library opens a file, which a jailed process cannot. */
	pthread_setname_np(pthread_self(), "pager");
	(void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &parameters);
	if (serve_all(window, self))
		await_end(window);
	pthread_mutex_lock(&window->roster); /* no bell rings for a thread that is no more */
	atomic_store(&self->gone, true);
	pthread_mutex_unlock(&window->roster);
	return NULL;
}

/* --- start and stop ------------------------------------------------------------------------------------------ */

static void ring(int signal)
{
	(void)signal;
}

static int pin_to(pthread_attr_t *attributes, int cpu)
{
	cpu_set_t *cpus = CPU_ALLOC((size_t)cpu + 1);
	size_t bytes = CPU_ALLOC_SIZE((size_t)cpu + 1);
	int error;

	if (!cpus)
		return ENOMEM;
	CPU_ZERO_S(bytes, cpus);
	CPU_SET_S((size_t)cpu, bytes, cpus);
	error = pthread_attr_setaffinity_np(attributes, bytes, cpus);
	CPU_FREE(cpus);
	return error;
}

static int start_one(struct vb_handler *handler)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error = pthread_attr_init(&attributes);

	if (error)
		return -error;
	if (handler->cpu >= 0)
		error = pin_to(&attributes, handler->cpu);
	if (!error) {
		sigfillset(&all); /* signals are for the caller's threads, but for the bell */
		sigdelset(&all, BELL);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		error = pthread_create(&handler->thread, &attributes, handler_main, handler);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	pthread_attr_destroy(&attributes);
	if (error)
		return -error;
	return VB_OK;
}

int vb_handlers_start(struct vb_window *window, const int *cpus, size_t count)
{
	struct sigaction action = {.sa_handler = ring}, before;
	const int anywhere = -1;
	size_t started = 0;
	int status = VB_OK;

	if (!count) {
		cpus = &anywhere;
		count = 1;
	}
	if (sigaction(BELL, NULL, &before) != 0 ||
	    (before.sa_handler != ring && sigaction(BELL, &action, NULL) != 0))
		return -errno;
	window->handlers = calloc(count, sizeof *window->handlers);
	if (!window->handlers)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		window->handlers[i].window = window;
		window->handlers[i].cpu = cpus[i];
		window->handlers[i].enlisted = i == 0;
		pthread_cond_init(&window->handlers[i].call, NULL);
		if (!status)
			status = vb_lane_init(&window->handlers[i].lane);
	}
	window->handler_count = count;
	while (started < count && !status) {
		status = start_one(&window->handlers[started]);
		started += !status;
	}
	if (status) {
		window->handler_count = started;
		vb_handlers_stop(window);
	}
	return status;
}

void vb_handlers_stop(struct vb_window *window)
{
	const struct timespec pause = {.tv_nsec = 200000};

	if (!window->handlers)
		return;
	pthread_mutex_lock(&window->roster);
	atomic_store(&window->closing, true);
	pthread_cond_broadcast(&window->end);
	for (size_t i = 0; i < window->handler_count; i++)
		pthread_cond_signal(&window->handlers[i].call);
	pthread_mutex_unlock(&window->roster);
	for (size_t i = 0; i < window->handler_count; i++) {
		struct vb_handler *handler = &window->handlers[i];

		/* Again and again: a bell that rings before it waits for a fault is not heard. */
		while (!atomic_load(&handler->gone)) {
			pthread_kill(handler->thread, BELL);
			nanosleep(&pause, NULL);
		}
		pthread_join(handler->thread, NULL);
		vb_lane_clear(&handler->lane);
		pthread_cond_destroy(&handler->call);
	}
	free(window->handlers);
	window->handlers = NULL;
	window->handler_count = 0;
}
