/*
 * Which sealing requests the trusted application takes: 160 bytes each on standard input, and on standard output a line
 * for each, "taken" or "refused".
 */
#include "../ta/request.h"

#include <stdio.h>

int main(void)
{
	struct sealing_request request;

	while (fread(&request, sizeof(request), 1, stdin) == 1)
		puts(sealing_valid(&request) ? "taken" : "refused");
	return 0;
}
