/*
 * Run as root inside a Normal VM: look for patterns in all that its physical addresses lead to.
 *
 *   scan MASK PATTERN...      each in hexadecimal, 16 bytes, masked with MASK, so that nobody has a pattern in memory
 *                             who only looks for it
 *
 * RAM is read through /proc/kcore, page by page; what is not RAM through /dev/mem, a byte of each STEP bytes, up to 4 GiB
 * and at some places beyond. Prints, in lines that begin with "scan": RAM that was read, how often each pattern was found
 * (the last one is its own and is planted first), and what the other addresses gave.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define LENGTH 16
#define STEP (1UL << 20)
#define RAM 0x40000000UL
#define MOST 8

static unsigned char mask[LENGTH], wanted[MOST][LENGTH];
static unsigned long found[MOST];
static int patterns;
static sigjmp_buf out;

static void caught(int number)
{
	siglongjmp(out, number);
}

static void read_hex(const char *text, unsigned char *to)
{
	for (int i = 0; i < LENGTH; i++)
		if (sscanf(text + 2 * i, "%2hhx", &to[i]) != 1)
			exit(2);
}

static void look(const unsigned char *data, size_t size)
{
	for (int p = 0; p < patterns; p++) {
		unsigned char first = wanted[p][0] ^ mask[0];
		const unsigned char *at = data, *end = data + size - LENGTH + 1;
		while (at < end && (at = memchr(at, first, end - at))) {
			int i = 1;
			while (i < LENGTH && at[i] == (wanted[p][i] ^ mask[i]))
				i++;
			found[p] += i == LENGTH;
			at++;
		}
	}
}

static unsigned long scan_ram(void)
{
	static unsigned char block[1 << 20];
	unsigned long total = 0;
	int core = open("/proc/kcore", O_RDONLY);
	Elf64_Ehdr header;
	if (core < 0 || pread(core, &header, sizeof header, 0) != sizeof header)
		return 0;
	for (int i = 0; i < header.e_phnum; i++) {
		Elf64_Phdr part;
		if (pread(core, &part, sizeof part, header.e_phoff + i * sizeof part) != sizeof part)
			return 0;
		/* The linear map: one part for each stretch of RAM, at its physical address. */
		if (part.p_type != PT_LOAD || part.p_paddr < RAM || part.p_paddr > 1UL << 48 || part.p_memsz > 1UL << 40)
			continue;
		for (unsigned long done = 0; done < part.p_memsz;) {
			/* Blocks overlap, for what lies across an edge. */
			size_t want = part.p_memsz - done < sizeof block ? part.p_memsz - done : sizeof block;
			ssize_t got = pread(core, block, want, part.p_offset + done);
			if (got <= 0) {
				done += PAGE;
				continue;
			}
			look(block, got);
			total += got;
			done += got;
		}
	}
	memset(block, 0, sizeof block);
	return total;
}

static void probe(int memory, unsigned long address, unsigned long counts[4])
{
	unsigned char *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, memory, address);
	if (page == MAP_FAILED) {
		counts[0]++; /* RAM, or a driver's registers: the kernel does not give it, to root neither */
		return;
	}
	if (sigsetjmp(out, 1)) {
		counts[1]++;
	} else {
		unsigned char byte = *(volatile unsigned char *)page;
		counts[byte ? 3 : 2]++;
		if (byte)
			printf("scan byte %02x at %lx\n", byte, address);
	}
	munmap(page, PAGE);
}

int main(int count, char **words)
{
	unsigned long counts[4] = {0};
	if (count < 3 || count > MOST + 2)
		return 2;
	read_hex(words[1], mask);
	patterns = count - 2;
	for (int p = 0; p < patterns; p++)
		read_hex(words[2 + p], wanted[p]);
	unsigned char *own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	for (int i = 0; i < LENGTH; i++)
		own[100 + i] = wanted[patterns - 1][i] ^ mask[i];
	printf("scan ram %lu\n", scan_ram());
	for (int p = 0; p < patterns; p++)
		printf("scan found %lu\n", found[p]);
	signal(SIGBUS, caught);
	signal(SIGSEGV, caught);
	int memory = open("/dev/mem", O_RDONLY);
	for (unsigned long address = 0; address < 1UL << 32; address += STEP)
		probe(memory, address, counts);
	for (int bit = 32; bit < 48; bit++)
		probe(memory, 1UL << bit, counts);
	printf("scan denied %lu faulted %lu zero %lu other %lu\n", counts[0], counts[1], counts[2], counts[3]);
	printf("scan done\n");
	return 0;
}
