/* SPDX-License-Identifier: Apache-2.0 */
/* The two attestation keys of each suite. They live in this instance's memory only, made at their first use. */
#ifndef VAMBRACE_KEYS_H
#define VAMBRACE_KEYS_H

#include "suite.h"

#include <tee_internal_api.h>

#define SIGNATURE_BYTES 64
#define COSE_KEY_MAX 79

struct signing_key {
	const struct suite *suite;
	TEE_ObjectHandle object;
	uint8_t cose_key[COSE_KEY_MAX];  /* deterministic COSE_Key (RFC 9052 section 7) */
	size_t cose_key_length;
	uint8_t fingerprint[HASH_BYTES]; /* the suite's hash of cose_key */
	uint8_t prefix[HASH_BYTES];      /* of what is signed, where the suite has one */
	size_t prefix_length;
};

/* Derived from the fuse: the same for ever on one machine. */
TEE_Result platform_attestation_key(const struct suite *suite, const struct signing_key **key);
/* Fresh at each boot. */
TEE_Result realm_attestation_key(const struct suite *suite, const struct signing_key **key);

/* 32 bytes for ``info`` that only this application on this machine can derive: from the fuse, by the system PTA. */
TEE_Result derive_unique_key(void *info, size_t length, uint8_t key[HASH_BYTES]);
/* Make both anew when they are needed again. */
void forget_keys(void);

/* r and s, one after the other. */
TEE_Result sign(const struct signing_key *key, const void *message, size_t length, uint8_t signature[SIGNATURE_BYTES]);

#endif
