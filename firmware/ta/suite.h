/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The suites of cryptography (vambrace/suite.py has the same table): the one place that says what hashes and signs in
 * which. The request names one by its number (protocol.h).
 */
#ifndef VAMBRACE_SUITE_H
#define VAMBRACE_SUITE_H

#include <tee_internal_api.h>

#define HASH_BYTES 32
#define COORDINATE_BYTES 32
#define SUITES 2

/* y² = x³ - 3x + b modulo p, with a generator of order n; big-endian. */
struct curve {
	uint8_t p[COORDINATE_BYTES];
	uint8_t a[COORDINATE_BYTES]; /* p - 3 */
	uint8_t b[COORDINATE_BYTES];
	uint8_t x[COORDINATE_BYTES];
	uint8_t y[COORDINATE_BYTES];
	uint8_t n[COORDINATE_BYTES];
};

struct suite {
	/* 0 or 1: keys are kept by it. */
	size_t index;
	/* As claims name it. */
	const char *hash;
	/* GlobalPlatform's numbers. */
	uint32_t digest;
	uint32_t signature;
	uint32_t key_type;
	uint32_t key_curve; /* 0: the key's type says it */
	/* COSE's numbers. */
	int64_t cose_algorithm;
	int64_t cose_curve;
	/* Of the platform key's derivation from the fuse. */
	const char *label;
	/* NULL: mbedtls knows it as P-256. */
	const struct curve *curve;
	/* Private keys are the numbers from 1 to n less this. */
	int excluded;
	/* What enters each signature before the message, hashed with the curve and the key; NULL: nothing does. */
	const char *identity;
};

/* NULL: there is none with this number. */
const struct suite *suite_numbered(uint32_t number);

/* The suite's hash of ``prefix`` and ``data`` one after the other. */
TEE_Result suite_digest(const struct suite *suite, const void *prefix, size_t prefix_length, const void *data, size_t length,
		  uint8_t hash[HASH_BYTES]);

#endif
