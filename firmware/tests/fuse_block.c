/*
 * What firmware makes of fuses: struct fuse_block each on standard input. Standard output: a line for each, "refused", or
 * the life cycle and both versions.
 */
#include "../common/fuse_block.h"

#include <stdio.h>

int main(void)
{
	struct fuse_block fuse;
	uint32_t firmware = 0;
	uint32_t host = 0;

	while (fread(&fuse, sizeof(fuse), 1, stdin) == 1) {
		if (!fuse_good(&fuse)) {
			puts("refused");
			continue;
		}
		if (!fuse_counter(fuse.firmware_version, &firmware) || !fuse_counter(fuse.host_version, &host))
			return 1;
		printf("%#x %u %u\n", fuse_lifecycle(&fuse), firmware, host);
	}
	return 0;
}
