/*
 * Hashes as the stub does. Standard input: records of a little-endian word of 64 bits, the length, then the data.
 * Standard output: a digest in hexadecimal for each, on a line of its own.
 */
#define _GNU_SOURCE
#include "../stub/sha256.h"

#include <stdio.h>
#include <sys/mman.h>

#define PAGE ((uint64_t)4096)

int main(void)
{
	uint64_t length;

	while (fread(&length, sizeof length, 1, stdin) == 1) {
		/* Its end, but for the alignment, is that of what may be read. */
		uint64_t aligned = (length + 15) & ~(uint64_t)15;
		uint64_t bytes = (aligned + PAGE - 1) & ~(PAGE - 1);
		uint8_t *memory = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		uint8_t *data = memory + bytes - aligned;
		uint8_t digest[34];

		if (memory == MAP_FAILED || mprotect(memory + bytes, PAGE, PROT_NONE) ||
		    fread(data, 1, length, stdin) != length)
			return 2;
		digest[32] = digest[33] = 0xa5;
		sha256(data, length, digest);
		if (digest[32] != 0xa5 || digest[33] != 0xa5)
			return 3;
		for (int i = 0; i < 32; i++)
			printf("%02x", digest[i]);
		putchar('\n');
		munmap(memory, bytes + PAGE);
	}
	return 0;
}
