/*
 * What the trusted application thinks of requests: 320 bytes each on standard input. Standard output: a line for each,
 * "refused", or the text of the claim on the cache.
 */
#include "../ta/request.h"

#include <stdio.h>

int main(void)
{
	struct realm_request request;

	while (fread(&request, sizeof(request), 1, stdin) == 1)
		puts(request_valid(&request) ? partition_text(request.cache_partition) : "refused");
	return 0;
}
