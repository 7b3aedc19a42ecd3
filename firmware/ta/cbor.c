// SPDX-License-Identifier: Apache-2.0
#include "cbor.h"

#include <string.h>

enum major { UNSIGNED = 0, NEGATIVE = 1, BYTES = 2, TEXT = 3, ARRAY = 4, MAP = 5, TAG = 6, SIMPLE = 7 };

void cbor_init(struct cbor *out, void *data, size_t size)
{
	*out = (struct cbor){ .data = data, .size = size };
}

static void append(struct cbor *out, const void *data, size_t length)
{
	if (out->overflow || length > out->size - out->length) {
		out->overflow = true;
		return;
	}
	memcpy(out->data + out->length, data, length);
	out->length += length;
}

static void head(struct cbor *out, enum major major, uint64_t value)
{
	uint8_t bytes[9] = { 0 };
	size_t width = 0;
	size_t i = 0;

	if (value < 24) {
		bytes[0] = (uint8_t)(major << 5 | value);
	} else {
		uint8_t code = value <= UINT8_MAX ? 24 : value <= UINT16_MAX ? 25 : value <= UINT32_MAX ? 26 : 27;

		width = (size_t)1 << (code - 24);
		bytes[0] = (uint8_t)(major << 5 | code);
		for (i = 0; i < width; i++)
			bytes[1 + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
	}
	append(out, bytes, 1 + width);
}

void cbor_int(struct cbor *out, int64_t value)
{
	if (value >= 0)
		head(out, UNSIGNED, (uint64_t)value);
	else
		head(out, NEGATIVE, (uint64_t)(-1 - value));
}

void cbor_bytes(struct cbor *out, const void *data, size_t length)
{
	head(out, BYTES, length);
	append(out, data, length);
}

void cbor_text(struct cbor *out, const char *text)
{
	head(out, TEXT, strlen(text));
	append(out, text, strlen(text));
}

void cbor_array(struct cbor *out, size_t count)
{
	head(out, ARRAY, count);
}

void cbor_map(struct cbor *out, size_t count)
{
	head(out, MAP, count);
}

void cbor_tag(struct cbor *out, uint64_t tag)
{
	head(out, TAG, tag);
}

void cbor_bool(struct cbor *out, bool value)
{
	head(out, SIMPLE, value ? 21 : 20);
}
