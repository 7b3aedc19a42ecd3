/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VAMBRACE_SHA256_H
#define VAMBRACE_SHA256_H

#include <stdint.h>

/* FIPS 180-4, with the processor's SHA-256 instructions (FEAT_SHA256). ``data`` is 16-byte aligned. */
void sha256(const uint8_t *data, uint64_t length, uint8_t digest[32]);

#endif
