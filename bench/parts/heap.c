/*
 * The heap of an unmodified program in vambrace's window. Preloaded (LD_PRELOAD), with the window's sources compiled in, it makes
 * the C library's whole heap the guest memory of a window with one zone. So real programs tell what a percentage costs them.
 *
 *   HEAP_MIB      the heap's size, which is the zone's
 *   HEAP_PERCENT  encrypted at least
 *   HEAP_REPORT   a file that takes the zone's statistics at the end, as JSON
 *
 * Compile with -Dmmap=heap_mmap -Dmunmap=heap_munmap -Dcalloc=heap_calloc for the window's sources only (this file undoes it):
 * the window gets the heap's addresses as its guest memory, and nothing that it or libcrypto allocates lies in the heap.
 */
#undef mmap
#undef munmap
#undef calloc
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "../../core/status.h"
#include "../../core/window.h"

#define HUGE_PAGE ((size_t)2 << 20)

static uint8_t *heap;
static size_t bytes;
static bool given;
static struct vb_window *window;

static void stop(const char *what)
{
	dprintf(STDERR_FILENO, "heap: %s\n", what);
	_exit(120);
}

/* Memory for the window and libcrypto, never given back. */
static void *own(size_t size)
{
	static _Alignas(64) uint8_t pool[8 << 20];
	static _Atomic size_t used;
	size_t at = __atomic_fetch_add((size_t *)&used, (size + 63) & ~(size_t)63, __ATOMIC_RELAXED);

	if (at + size > sizeof pool)
		stop("the pool is too small");
	return pool + at;
}

void *heap_calloc(size_t count, size_t size)
{
	return own(count * size);
}

/* The first mapping that is asked for is the guest's memory, with room before it to be aligned. */
void *heap_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	if (!given && size == bytes + HUGE_PAGE) {
		given = true;
		return heap;
	}
	return mmap(address, size, protection, flags, fd, offset);
}

int heap_munmap(void *address, size_t size)
{
	if ((uint8_t *)address >= heap && (uint8_t *)address <= heap + bytes)
		return 0;
	return munmap(address, size);
}

static void *crypto_malloc(size_t size, const char *file, int line)
{
	(void)file;
	(void)line;
	return own(size);
}

/* The size before is not known: as much is read as is asked for, which is within the pool. */
static void *crypto_realloc(void *old, size_t size, const char *file, int line)
{
	void *new = crypto_malloc(size, file, line);

	if (old)
		memcpy(new, old, size);
	return new;
}

static void crypto_free(void *memory, const char *file, int line)
{
	(void)memory;
	(void)file;
	(void)line;
}

static void report(void)
{
	const char *path = getenv("HEAP_REPORT");
	struct vb_stats stats;
	int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;

	if (fd < 0 || vb_window_stats(window, 0, &stats) != VB_OK)
		return;
	dprintf(fd,
		"{\"faults\": %llu, \"zero_faults\": %llu, \"standby_hits\": %llu, \"decrypted\": %llu, \"evictions\": %llu, "
		"\"plaintext_max\": %llu, \"handler_ns\": %llu}\n",
		(unsigned long long)stats.faults, (unsigned long long)stats.zero_faults,
		(unsigned long long)stats.standby_hits, (unsigned long long)stats.bytes_decrypted / VB_PAGE_SIZE_BYTES,
		(unsigned long long)stats.evictions, (unsigned long long)stats.plaintext_max,
		(unsigned long long)stats.handler_ns);
	close(fd);
}

__attribute__((constructor)) static void start(void)
{
	const char *size = getenv("HEAP_MIB"), *percent = getenv("HEAP_PERCENT");
	uint8_t key[VB_REALM_KEY_BYTES], instance[VB_INSTANCE_BYTES];
	struct vb_zone_config zone = {0};
	struct vb_config config = {.zones = &zone, .zone_count = 1, .key = key, .instance = instance, .grace_ms = 1000};
	void *volatile allocated; /* or the compiler leaves both calls out */
	cpu_set_t cpus;
	int cpu = sched_getcpu(), status;

	if (!size || !percent)
		return;
	if (CRYPTO_set_mem_functions(crypto_malloc, crypto_realloc, crypto_free) != 1)
		stop("libcrypto was used before");
	/* The program stays on one CPU, with its handler. */
	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	sched_setaffinity(0, sizeof cpus, &cpus);
	config.handler_cpus = &cpu;
	config.handler_count = 1;
	bytes = strtoull(size, NULL, 10) << 20;
	zone = (struct vb_zone_config){bytes / VB_PAGE_SIZE_BYTES, (unsigned)atoi(percent), 0};
	if (getrandom(key, sizeof key, 0) != sizeof key || getrandom(instance, sizeof instance, 0) != sizeof instance)
		stop("no random numbers");
	/* From now on malloc takes everything from one heap, which grows by all of its pages at once. */
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, -1);
	mallopt(M_TOP_PAD, (int)(bytes + 2 * HUGE_PAGE));
	heap = (uint8_t *)(((uintptr_t)sbrk(0) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	allocated = malloc(1 << 20); /* more than the heap has */
	free(allocated);
	status = vb_window_create(&config, &window);
	if (status)
		stop(vb_status_message(status));
	atexit(report);
}
