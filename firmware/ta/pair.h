/* SPDX-License-Identifier: Apache-2.0 */
/* A key pair computed from key material: what GlobalPlatform's interface makes at random only. */
#ifndef VAMBRACE_PAIR_H
#define VAMBRACE_PAIR_H

#include "suite.h"

/* Twice the order's size: reducing 512 bits modulo 256 leaves a bias below 2^-255. */
#define WIDE_BYTES 64

/* 0, or mbedtls's error. */
int compute_pair(const struct suite *suite, const uint8_t wide[WIDE_BYTES], uint8_t scalar[COORDINATE_BYTES],
		 uint8_t x[COORDINATE_BYTES], uint8_t y[COORDINATE_BYTES]);

#endif
