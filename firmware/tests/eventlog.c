/*
 * Reads boot event logs as the trusted application does. Standard input: records of five little-endian words of 32 bits
 * (result of opening the session, result of the command, stated length, 1 if there is no memory, length), then the log.
 * Standard output: a line for each, the result in hexadecimal and, of what was understood, NAME=DIGEST.
 */
#include "../ta/eventlog.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tee.h"

int main(void)
{
	static struct boot_events log;
	uint32_t head[5];

	while (fread(head, sizeof head, 1, stdin) == 1) {
		uint8_t *data = malloc(head[4] ? head[4] : 1);
		TEE_Result result;

		if (!data || fread(data, 1, head[4], stdin) != head[4])
			return 2;
		memset(&log, 0xa5, sizeof log);
		fake_log = (struct fake_log){.opening = head[0], .answer = head[1], .claimed = head[2],
					     .no_memory = head[3], .data = data, .length = head[4]};
		result = read_boot_events(&log);
		printf("%08x", result);
		for (size_t i = 0; !result && i < log.count; i++) {
			printf(" %s=", log.events[i].name);
			for (size_t j = 0; j < HASH_BYTES; j++)
				printf("%02x", log.events[i].digest[j]);
		}
		putchar('\n');
		free(data);
		if (fake_open)
			return 3;
	}
	return 0;
}
