/*
 * What the trusted application thinks of requests: 320 bytes each on standard input. Standard output: a line for each,
 * "refused", or the texts of the claims on the cache and the class.
 */
#include "../ta/request.h"

#include <stdio.h>

int main(void)
{
	struct realm_request request;

	while (fread(&request, sizeof(request), 1, stdin) == 1)
		if (request_valid(&request))
			printf("%s %s\n", partition_text(request.cache_partition), class_text(request.domain_class));
		else
			puts("refused");
	return 0;
}
