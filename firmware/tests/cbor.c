/*
 * Writes CBOR as the trusted application does. Each line of standard input: the buffer's size, then pairs of an item and
 * its number: int N, tag N, array N, map N, bool N; bytes N and text N have N bytes 'x'.
 * Standard output: a line for each, "ok" or "overflow", and what was written in hexadecimal.
 */
#include "../ta/cbor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(struct cbor *out, const char *item, const char *number)
{
	uint64_t value = strtoull(number, NULL, 10);
	char *text;

	if (!strcmp(item, "int")) {
		cbor_int(out, strtoll(number, NULL, 10));
	} else if (!strcmp(item, "tag")) {
		cbor_tag(out, value);
	} else if (!strcmp(item, "array")) {
		cbor_array(out, value);
	} else if (!strcmp(item, "map")) {
		cbor_map(out, value);
	} else if (!strcmp(item, "bool")) {
		cbor_bool(out, value);
	} else {
		text = malloc(value + 1);
		if (!text)
			exit(2);
		memset(text, 'x', value);
		text[value] = 0;
		if (!strcmp(item, "text"))
			cbor_text(out, text);
		else if (!strcmp(item, "bytes"))
			cbor_bytes(out, text, value);
		else
			exit(2);
		free(text);
	}
}

int main(void)
{
	size_t size;
	char item[8], number[24];

	while (scanf("%zu", &size) == 1) {
		uint8_t *data = malloc(size); /* exactly: AddressSanitizer sees a byte too much */
		struct cbor out;
		bool before = false;
		size_t length = 0;

		if (size && !data)
			return 2;
		cbor_init(&out, data, size);
		while (scanf("%*1[ ]%7s %23s", item, number) == 2) {
			before = out.overflow;
			length = out.length;
			put(&out, item, number);
			if (before && (!out.overflow || out.length != length))
				return 3; /* overflow is sticky */
		}
		printf("%s ", out.overflow ? "overflow" : "ok");
		for (size_t i = 0; i < out.length; i++)
			printf("%02x", data[i]);
		putchar('\n');
		free(data);
	}
	return 0;
}
