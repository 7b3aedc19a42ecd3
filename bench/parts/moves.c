/*
 * What answering page faults costs at least, without a window and without a fault: a page is brought in, another goes out. For
 * bench/native.py.
 *
 *   moves WORK WORKERS COUNT
 *
 * WORK      move     for each of COUNT, a page is decrypted (AES-256-GCM) and moved in (UFFDIO_MOVE), another one is moved out and
 *                    encrypted: as the window does it
 *           copy     the page is decrypted into a buffer and copied in (UFFDIO_COPY), which needs no flush of translation buffers;
 *                    what is left of it aside is dropped with many others in one call
 * WORKERS   one, threads (two), or processes (two); each on a CPU of its own, with pages, mappings, page tables and a userfaultfd
 *           that no other has
 *
 * One line of JSON: seconds, from the first one's start to the last one's end, and faults (COUNT of each).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../core/cipher.h"
#include "../../core/status.h"
#include "../../core/uffd.h"
#include "../../core/window.h"

#define MOST_WORKERS 2
#define PAGES 512
#define INSIDE 256
#define BYTES (PAGES * VB_PAGE_SIZE_BYTES)
#define DROPPED 64

struct worker {
	int cpu;
	double start, end;
};

/* In memory that processes share. */
static struct shared {
	pthread_barrier_t ready;
	struct worker workers[MOST_WORKERS];
} *shared;

static size_t count;
static bool copies;

static void stop(const char *what)
{
	fprintf(stderr, "moves: %s\n", what);
	_exit(1);
}

static void check(int status, const char *what)
{
	if (status)
		stop(status > 0 ? vb_status_message(status) : what);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *map(size_t bytes, int protection, int flags)
{
	void *memory = mmap(NULL, bytes, protection, flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		stop("no memory");
	return memory;
}

/* With nothing beside it that it could have a mapping or a page table in common with. */
static uint8_t *apart(void)
{
	uint8_t *room = map(BYTES + 3 * VB_UFFD_STEP, PROT_NONE, MAP_PRIVATE);
	uint8_t *memory = room + 2 * VB_UFFD_STEP - (uintptr_t)room % VB_UFFD_STEP;

	if (mprotect(memory, BYTES, PROT_READ | PROT_WRITE) != 0)
		stop("no memory");
	madvise(memory, BYTES, MADV_NOHUGEPAGE);
	return memory;
}

static struct vb_cipher *make_cipher(struct vb_secret *secret)
{
	uint8_t key[VB_REALM_KEY_BYTES] = {1}, instance[VB_INSTANCE_BYTES] = {2};
	struct vb_cipher *cipher = NULL;

	check(vb_secret_create(secret, &vb_libcrypto, VB_AES_256_GCM, key, instance, 0), "key");
	check(vb_cipher_create(secret, &cipher), "cipher");
	return cipher;
}

static void seal(struct vb_cipher *cipher, struct vb_job *job)
{
	job->version++;
	check(vb_seal_begin(cipher, job, 1), "encryption");
	check(vb_seal_finish(cipher), "encryption");
}

struct memory {
	int uffd, process;
	uint8_t *guest, *side;
	struct vb_cipher *cipher;
	struct vb_secret secret;
	struct vb_job jobs[PAGES]; /* of what is aside */
	uint8_t tags[PAGES][VB_TAG_BYTES];
	struct iovec dropped[DROPPED];
	size_t drop;
};

static void bring(struct memory *memory, struct vb_job *job)
{
	uint8_t *to = memory->guest + job->page * VB_PAGE_SIZE_BYTES, *from = job->data, buffer[VB_PAGE_SIZE_BYTES];
	size_t done, failed;

	if (copies) {
		memcpy(buffer, from, sizeof buffer);
		job->data = buffer;
	}
	check(vb_open_pages(memory->cipher, job, 1, &failed), "decryption");
	job->data = from;
	if (!copies) {
		check(vb_uffd_move_in(memory->uffd, to, from, VB_PAGE_SIZE_BYTES, &done), "move in");
		return;
	}
	check(vb_uffd_copy(memory->uffd, to, buffer, VB_PAGE_SIZE_BYTES, &done), "copy");
	memory->dropped[memory->drop++] = (struct iovec){from, VB_PAGE_SIZE_BYTES};
	if (memory->drop == DROPPED) {
		if (syscall(SYS_process_madvise, memory->process, memory->dropped, DROPPED, MADV_DONTNEED, 0) != (long)(DROPPED * VB_PAGE_SIZE_BYTES))
			stop("this kernel does not drop the pages of a list (Linux 6.13)");
		memory->drop = 0;
	}
}

static void take(struct memory *memory, struct vb_job *job)
{
	size_t done;

	check(vb_uffd_move_out(memory->uffd, job->data, memory->guest + job->page * VB_PAGE_SIZE_BYTES, VB_PAGE_SIZE_BYTES, &done),
	      "move out");
	seal(memory->cipher, job);
}

/* The first pages of guest memory are there, the others aside and encrypted. */
static struct memory *prepare(void)
{
	struct memory *memory = calloc(1, sizeof *memory);
	size_t done;

	if (!memory)
		stop("no memory");
	memory->guest = apart();
	memory->side = apart();
	memory->process = (int)syscall(SYS_pidfd_open, getpid(), 0);
	memory->cipher = make_cipher(&memory->secret);
	check(vb_uffd_open(0, &memory->uffd), "userfaultfd");
	memset(memory->side, 1, BYTES);
	for (uint32_t page = 0; page < PAGES; page++) {
		memory->jobs[page] = (struct vb_job){page, 0, memory->side + page * VB_PAGE_SIZE_BYTES, memory->tags[page]};
		if (page >= INSIDE)
			seal(memory->cipher, &memory->jobs[page]);
	}
	check(vb_uffd_register(memory->uffd, memory->guest, BYTES), "register");
	check(vb_uffd_register(memory->uffd, memory->side, BYTES), "register");
	check(vb_uffd_move_in(memory->uffd, memory->guest, memory->side, INSIDE * VB_PAGE_SIZE_BYTES, &done), "move");
	return memory;
}

static void *work(void *argument)
{
	struct worker *self = argument;
	struct memory *memory = prepare();
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(self->cpu, &one);
	if (sched_setaffinity(0, sizeof one, &one) != 0)
		stop("a thread could not be placed");
	pthread_barrier_wait(&shared->ready);
	self->start = now();
	for (size_t i = 0; i < count; i++) {
		bring(memory, &memory->jobs[(i + INSIDE) % PAGES]);
		take(memory, &memory->jobs[i % PAGES]);
	}
	self->end = now();
	return NULL;
}

static void run_threads(size_t workers)
{
	pthread_t threads[MOST_WORKERS];

	for (size_t i = 0; i < workers; i++)
		if (pthread_create(&threads[i], NULL, work, &shared->workers[i]) != 0)
			stop("no thread");
	for (size_t i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
}

static void run_processes(size_t workers)
{
	for (size_t i = 0; i < workers; i++) {
		pid_t child = fork();

		if (child < 0)
			stop("no process");
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL); /* one that waits for another that failed */
			work(&shared->workers[i]);
			_exit(0);
		}
	}
	for (size_t i = 0; i < workers; i++) {
		int status;

		if (wait(&status) < 0 || status != 0)
			stop("a process failed");
	}
}

static void place(size_t workers)
{
	cpu_set_t allowed;
	size_t found = 0;

	sched_getaffinity(0, sizeof allowed, &allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE && found < workers; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			shared->workers[found++].cpu = cpu;
	if (found < workers)
		stop("there are fewer CPUs than workers");
}

int main(int words, char **word)
{
	pthread_barrierattr_t attributes;
	double start, end;
	size_t workers;

	if (words != 4 || (strcmp(word[1], "move") && strcmp(word[1], "copy")))
		stop("WORK WORKERS COUNT");
	copies = !strcmp(word[1], "copy");
	workers = strcmp(word[2], "one") ? 2 : 1;
	count = strtoull(word[3], NULL, 10);
	shared = map(sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED);
	pthread_barrierattr_init(&attributes);
	pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->ready, &attributes, (unsigned)workers);
	place(workers);
	if (strcmp(word[2], "processes"))
		run_threads(workers);
	else
		run_processes(workers);
	start = shared->workers[0].start;
	end = shared->workers[0].end;
	for (size_t i = 1; i < workers; i++) {
		start = shared->workers[i].start < start ? shared->workers[i].start : start;
		end = shared->workers[i].end > end ? shared->workers[i].end : end;
	}
	printf("{\"seconds\": %.9f, \"faults\": %zu}\n", end - start, workers * count);
	return 0;
}
