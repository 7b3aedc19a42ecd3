/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A writer of deterministic CBOR (RFC 8949 section 4.2.1): shortest heads, definite lengths. The caller writes map
 * keys in bytewise order of their encodings. Overflow is sticky: once it is set nothing more is written.
 */
#ifndef VAMBRACE_CBOR_H
#define VAMBRACE_CBOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cbor {
	uint8_t *data;
	size_t size;
	size_t length;
	bool overflow;
};

void cbor_init(struct cbor *out, void *data, size_t size);
void cbor_int(struct cbor *out, int64_t value);
void cbor_bytes(struct cbor *out, const void *data, size_t length);
void cbor_text(struct cbor *out, const char *text);
void cbor_array(struct cbor *out, size_t count);
void cbor_map(struct cbor *out, size_t count);
void cbor_tag(struct cbor *out, uint64_t tag);
void cbor_bool(struct cbor *out, bool value);

#endif
