/*
 * Replays accesses to memory of which only a window is there, and says how long that took. For bench/native.py.
 *
 *   faults MODE CIPHER PAGES PERCENT TRACE [TRACE]
 *
 * MODE      engine   vambrace's window, as it is
 *           naive    a userfaultfd handler as one would write it first: a thread on the faulting CPU polls, reads one
 *                    fault, moves the oldest page out and the wanted one in; no cipher
 *           swap     ordinary memory; the caller has limited it, and swap takes the rest
 *           cipher   ordinary memory; what would have to be decrypted and encrypted for the accesses, and nothing else
 *           xts      decryption and encryption of a page in 4 MiB, as often as TRACE is long, with AES-256-XTS, which dm-crypt
 *                    uses and which authenticates nothing
 * CIPHER    aes-256-gcm or sm4-gcm
 * TRACE     a file of page numbers, 32 bits each in the machine's order; with two, two threads, each on a CPU of its own
 *
 * Each access reads and writes the page. One line of JSON: seconds, cpu (seconds of all threads), misses (pages decrypted,
 * moved in or swapped in), accesses, standby (hits).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "../../core/cipher.h"
#include "../../core/status.h"
#include "../../core/uffd.h"
#include "../../core/window.h"

#define MAXIMUM_THREADS 2

static void stop(const char *what)
{
	fprintf(stderr, "faults: %s\n", what);
	exit(1);
}

static void check(int status, const char *what)
{
	if (status) {
		fprintf(stderr, "faults: %s: %s\n", what, vb_status_message(status));
		exit(1);
	}
}

static double now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* The CPUs that this process may use, in order. */
static int cpus[MAXIMUM_THREADS], cpu_count;

static void find_cpus(void)
{
	cpu_set_t allowed;

	sched_getaffinity(0, sizeof allowed, &allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE && cpu_count < MAXIMUM_THREADS; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[cpu_count++] = cpu;
}

static void stay_on(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof one, &one) != 0)
		stop("a thread could not be placed");
}

/* --- accesses ------------------------------------------------------------------------------------------------ */

struct trace {
	const uint32_t *pages;
	size_t count;
	uint8_t *memory;
	int cpu;
};

static struct trace traces[MAXIMUM_THREADS];
static size_t trace_count;

static void load_trace(const char *path)
{
	struct trace *trace = &traces[trace_count++];
	int file = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;

	if (file < 0 || fstat(file, &status) != 0 || status.st_size < 4)
		stop("no such trace");
	trace->count = (size_t)status.st_size / 4;
	trace->pages = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
	if (trace->pages == MAP_FAILED)
		stop("the trace cannot be read");
	close(file);
}

static void *replay(void *argument)
{
	const struct trace *trace = argument;

	stay_on(trace->cpu);
	for (size_t i = 0; i < trace->count; i++) {
		volatile uint64_t *cell = (volatile uint64_t *)(trace->memory + trace->pages[i] * VB_PAGE_SIZE_BYTES + i % 500 * 8);

		*cell = *cell + i;
	}
	return NULL;
}

/* Every page with contents that no compression makes smaller. */
static void fill(uint8_t *memory, uint32_t pages)
{
	uint64_t random;

	if (getrandom(&random, sizeof random, 0) != sizeof random)
		stop("no random numbers");
	for (size_t i = 0; i < pages * VB_PAGE_SIZE_BYTES / 8; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		((volatile uint64_t *)memory)[i] = random;
	}
}

/* --- naive --------------------------------------------------------------------------------------------------- */

static struct naive {
	int uffd;
	uint8_t *guest, *side;
	uint32_t pages, window;
	uint32_t *queue, head, count;
	bool *aside;
	uint64_t misses;
} naive;

static void *naive_handler(void *unused)
{
	static const uint8_t zeros[VB_PAGE_SIZE_BYTES];
	struct pollfd end = {.fd = naive.uffd, .events = POLLIN};

	(void)unused;
	stay_on(cpus[0]);
	for (;;) {
		struct vb_fault fault;
		size_t done;
		uint32_t page;

		if (poll(&end, 1, -1) < 1 || vb_uffd_read(naive.uffd, &fault, 1) < 1)
			continue;
		page = (uint32_t)((fault.address - (uintptr_t)naive.guest) / VB_PAGE_SIZE_BYTES);
		if (naive.count == naive.window) {
			uint32_t victim = naive.queue[naive.head];
			size_t at = victim * VB_PAGE_SIZE_BYTES;

			naive.head = (naive.head + 1) % naive.window;
			naive.count--;
			check(vb_uffd_move_out(naive.uffd, naive.side + at, naive.guest + at, VB_PAGE_SIZE_BYTES, &done),
			      "move out");
			naive.aside[victim] = true;
		}
		naive.queue[(naive.head + naive.count++) % naive.window] = page;
		if (naive.aside[page]) {
			size_t at = page * VB_PAGE_SIZE_BYTES;

			naive.aside[page] = false;
			naive.misses++;
			check(vb_uffd_move_in(naive.uffd, naive.guest + at, naive.side + at, VB_PAGE_SIZE_BYTES, &done),
			      "move in");
		} else {
			check(vb_uffd_copy(naive.uffd, naive.guest + page * VB_PAGE_SIZE_BYTES, zeros, VB_PAGE_SIZE_BYTES,
					   &done),
			      "map");
		}
	}
	return NULL;
}

static uint8_t *anonymous(size_t bytes)
{
	uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		stop("no memory");
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	return memory;
}

static uint8_t *naive_memory(uint32_t pages, uint32_t window)
{
	size_t bytes = pages * VB_PAGE_SIZE_BYTES;
	pthread_t thread;

	naive = (struct naive){.pages = pages, .window = window, .guest = anonymous(bytes), .side = anonymous(bytes)};
	naive.queue = calloc(window, sizeof *naive.queue);
	naive.aside = calloc(pages, sizeof *naive.aside);
	check(vb_uffd_open(0, &naive.uffd), "userfaultfd");
	/* Two ways to wait are one too many, but so it is written first. */
	fcntl(naive.uffd, F_SETFL, O_NONBLOCK);
	check(vb_uffd_register(naive.uffd, naive.guest, bytes), "register");
	check(vb_uffd_register(naive.uffd, naive.side, bytes), "register");
	if (!naive.queue || !naive.aside || pthread_create(&thread, NULL, naive_handler, NULL) != 0)
		stop("no handler");
	return naive.guest;
}

/* --- engine -------------------------------------------------------------------------------------------------- */

static struct vb_window *window;

static uint8_t *engine_memory(uint32_t pages, unsigned percent, enum vb_cipher_kind cipher)
{
	uint8_t key[VB_REALM_KEY_BYTES], instance[VB_INSTANCE_BYTES];
	const struct vb_zone_config zone = {pages, percent, 0};
	struct vb_config config = {.zones = &zone, .zone_count = 1, .key = key, .instance = instance, .cipher = cipher,
				   .handler_cpus = cpus, .handler_count = trace_count, .grace_ms = -1};

	if (getrandom(key, sizeof key, 0) != sizeof key || getrandom(instance, sizeof instance, 0) != sizeof instance)
		stop("no random numbers");
	check(vb_window_create(&config, &window), "window");
	return vb_window_address(window);
}

static uint64_t engine_misses(uint64_t *standby)
{
	struct vb_stats stats;

	check(vb_window_stats(window, 0, &stats), "statistics");
	*standby = stats.standby_hits;
	return stats.bytes_decrypted / VB_PAGE_SIZE_BYTES;
}

/* --- cipher -------------------------------------------------------------------------------------------------- */

/*
 * What libcrypto has to do for the trace, and nothing else: each access to a page that is not among the `room` pages decrypted
 * last decrypts it, in the memory where all pages lie, and encrypts the one that was decrypted first.
 */
static double cipher_seconds(enum vb_cipher_kind kind, uint32_t pages, uint32_t room, uint64_t *count)
{
	const struct trace *trace = &traces[0];
	uint8_t key[VB_REALM_KEY_BYTES] = {1}, instance[VB_INSTANCE_BYTES] = {2};
	uint8_t *memory = anonymous(pages * VB_PAGE_SIZE_BYTES), (*tags)[VB_TAG_BYTES] = calloc(pages, VB_TAG_BYTES);
	uint64_t *versions = calloc(pages, sizeof *versions); /* odd: encrypted */
	uint32_t *queue = calloc(room, sizeof *queue), head = 0, held = 0;
	struct vb_secret secret;
	struct vb_cipher *cipher = NULL;
	double start = 0;

	if (!tags || !versions || !queue)
		stop("no memory");
	check(vb_secret_create(&secret, &vb_libcrypto, kind, key, instance, 0), "key");
	check(vb_cipher_create(&secret, &cipher), "cipher");
	fill(memory, pages);
	*count = 0;
	for (size_t i = 0; i < pages + trace->count; i++) {
		uint32_t page = i < pages ? (uint32_t)i : trace->pages[i - pages];
		struct vb_job job = {page, versions[page], memory + page * VB_PAGE_SIZE_BYTES, tags[page]};
		size_t failed;

		if (i == pages)
			start = now(CLOCK_MONOTONIC);
		if (i >= pages && !(versions[page] & 1))
			continue;
		if (versions[page] & 1) {
			check(vb_open_pages(cipher, &job, 1, &failed), "decryption");
			versions[page]++;
			*count += i >= pages;
		}
		if (held == room) {
			uint32_t oldest = queue[head];
			struct vb_job victim = {oldest, ++versions[oldest], memory + oldest * VB_PAGE_SIZE_BYTES, tags[oldest]};

			head = (head + 1) % room;
			held--;
			check(vb_seal_begin(cipher, &victim, 1), "encryption");
			check(vb_seal_finish(cipher), "encryption");
		}
		queue[(head + held++) % room] = page;
	}
	start = now(CLOCK_MONOTONIC) - start;
	vb_cipher_destroy(cipher);
	return start;
}

static double xts_seconds(size_t rounds)
{
	enum { PAGES = 1024 };
	static uint8_t memory[PAGES * VB_PAGE_SIZE_BYTES];
	uint8_t key[64], tweak[16] = {0};
	EVP_CIPHER_CTX *contexts[] = {EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_new()};
	double start;

	for (size_t i = 0; i < sizeof key; i++)
		key[i] = (uint8_t)i;
	for (int encrypt = 0; encrypt < 2; encrypt++)
		if (!contexts[encrypt] ||
		    EVP_CipherInit_ex(contexts[encrypt], EVP_aes_256_xts(), NULL, key, tweak, encrypt) != 1)
			stop("no AES-256-XTS");
	start = now(CLOCK_MONOTONIC);
	for (size_t i = 0; i < rounds; i++) {
		uint8_t *page = memory + i * 2654435761u % PAGES * VB_PAGE_SIZE_BYTES;

		memcpy(tweak, &i, sizeof i);
		for (int encrypt = 1; encrypt >= 0; encrypt--) {
			int done;

			if (EVP_CipherInit_ex(contexts[encrypt], NULL, NULL, NULL, tweak, encrypt) != 1 ||
			    EVP_CipherUpdate(contexts[encrypt], page, &done, page, (int)VB_PAGE_SIZE_BYTES) != 1)
				stop("AES-256-XTS failed");
		}
	}
	start = now(CLOCK_MONOTONIC) - start;
	EVP_CIPHER_CTX_free(contexts[0]);
	EVP_CIPHER_CTX_free(contexts[1]);
	return start;
}

static uint64_t major_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (uint64_t)usage.ru_majflt;
}

static uint64_t count_misses(const char *mode, uint64_t *standby)
{
	*standby = 0;
	if (!strcmp(mode, "engine"))
		return engine_misses(standby);
	return strcmp(mode, "naive") ? major_faults() : naive.misses;
}

int main(int count, char **words)
{
	pthread_t threads[MAXIMUM_THREADS];
	uint64_t misses = 0, standby = 0, before = 0, standby_before = 0;
	enum vb_cipher_kind cipher;
	const char *mode;
	uint32_t pages;
	unsigned percent;
	uint8_t *memory;
	size_t accesses = 0;
	double seconds, cpu;

	if (count < 6 || count > 7)
		stop("MODE CIPHER PAGES PERCENT TRACE [TRACE]");
	mode = words[1];
	cipher = strcmp(words[2], "sm4-gcm") ? VB_AES_256_GCM : VB_SM4_GCM;
	pages = (uint32_t)atol(words[3]);
	percent = (unsigned)atoi(words[4]);
	for (int i = 5; i < count; i++)
		load_trace(words[i]);
	find_cpus();
	if ((size_t)cpu_count < trace_count)
		stop("there are fewer CPUs than threads");
	if (!strcmp(mode, "cipher") || !strcmp(mode, "xts")) {
		stay_on(cpus[0]);
		misses = accesses = traces[0].count;
		if (strcmp(mode, "xts"))
			seconds = cipher_seconds(cipher, pages, vb_zone_window(pages, percent), &misses);
		else
			seconds = xts_seconds(accesses);
		printf("{\"seconds\": %.9f, \"cpu\": %.9f, \"misses\": %llu, \"accesses\": %zu, \"standby\": 0}\n", seconds, seconds,
		       (unsigned long long)misses, accesses);
		return 0;
	}
	if (!strcmp(mode, "engine"))
		memory = engine_memory(pages, percent, cipher);
	else if (!strcmp(mode, "naive"))
		memory = naive_memory(pages, vb_zone_window(pages, percent));
	else if (!strcmp(mode, "swap"))
		memory = anonymous(pages * VB_PAGE_SIZE_BYTES);
	else
		stop("MODE is engine, naive, swap, cipher or xts");
	stay_on(cpus[0]);
	fill(memory, pages);
	before = count_misses(mode, &standby_before);
	for (size_t i = 0; i < trace_count; i++) {
		traces[i].memory = memory;
		traces[i].cpu = cpus[i];
		accesses += traces[i].count;
	}
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	seconds = now(CLOCK_MONOTONIC);
	for (size_t i = 0; i < trace_count; i++)
		if (pthread_create(&threads[i], NULL, replay, &traces[i]) != 0)
			stop("no thread");
	for (size_t i = 0; i < trace_count; i++)
		pthread_join(threads[i], NULL);
	seconds = now(CLOCK_MONOTONIC) - seconds;
	cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	misses = count_misses(mode, &standby);
	printf("{\"seconds\": %.9f, \"cpu\": %.9f, \"misses\": %llu, \"accesses\": %zu, \"standby\": %llu}\n", seconds, cpu,
	       (unsigned long long)(misses - before), accesses, (unsigned long long)(standby - standby_before));
	return 0;
}
