/* SPDX-License-Identifier: Apache-2.0 */
/* The two attestation keys, ECDSA P-256. Both live in this instance's memory only, made at their first use. */
#ifndef VAMBRACE_KEYS_H
#define VAMBRACE_KEYS_H

#include <tee_internal_api.h>

#define HASH_BYTES 32
#define SIGNATURE_BYTES 64
#define COSE_KEY_BYTES 75

struct signing_key {
	TEE_ObjectHandle object;
	uint8_t cose_key[COSE_KEY_BYTES];   /* deterministic COSE_Key (RFC 9052 section 7) */
	uint8_t fingerprint[HASH_BYTES];    /* SHA-256 of cose_key */
};

/* Derived from the fuse: the same for ever on one machine. */
TEE_Result platform_attestation_key(const struct signing_key **key);
/* Fresh at each boot. */
TEE_Result realm_attestation_key(const struct signing_key **key);

/* 32 bytes for ``info`` that only this application on this machine can derive: from the fuse, by the system PTA. */
TEE_Result derive_unique_key(void *info, size_t length, uint8_t key[HASH_BYTES]);
/* Make both anew when they are needed again. */
void forget_keys(void);

TEE_Result sha256(const void *data, size_t length, uint8_t digest[HASH_BYTES]);
TEE_Result sign(const struct signing_key *key, const uint8_t digest[HASH_BYTES], uint8_t signature[SIGNATURE_BYTES]);

#endif
