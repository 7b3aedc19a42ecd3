/*
 * Authenticated encryption of pages in place, through libcrypto's EVP interface.
 *
 *   zone key = HKDF-SHA256(key of the Realm, salt = instance, info = label ‖ cipher ‖ zone)
 *   nonce    = page within the zone (40 bits) ‖ version (56 bits), big-endian
 *   AD       = instance (16) ‖ zone (32 bits) ‖ page (64 bits), big-endian
 *
 * A page's version rises at each encryption, so that a nonce is never used twice under a zone's key.
 * GCM's bound on data under one key (2^64 blocks, birthday bound near 2^48 blocks = 4 PB) is far from
 * what a Realm encrypts between its start and its destruction.
 *
 * A job is one page; the functions take many, so that an accelerator can stand behind them.
 */
#ifndef VAMBRACE_CIPHER_H
#define VAMBRACE_CIPHER_H

#include <stddef.h>
#include <stdint.h>

#define VB_PAGE_SIZE_BYTES ((size_t)4096)
#define VB_REALM_KEY_BYTES 32
#define VB_INSTANCE_BYTES 16
#define VB_TAG_BYTES 16
#define VB_PAGE_LIMIT ((uint64_t)1 << 40)
#define VB_VERSION_LIMIT ((uint64_t)1 << 56)

enum vb_cipher_kind { VB_AES_256_GCM, VB_SM4_GCM };

struct vb_cipher;

struct vb_job {
	uint64_t page;    /* within the zone */
	uint64_t version;
	uint8_t *data;    /* VB_PAGE_SIZE_BYTES, changed in place */
	uint8_t *tag;     /* VB_TAG_BYTES, written by seal, read by open */
};

/* Known answers both ways, and a wrong tag. VB_NO_CIPHER, VB_SELF_TEST, VB_CRYPTO. */
int vb_cipher_self_test(enum vb_cipher_kind kind);

int vb_cipher_create(enum vb_cipher_kind kind, const uint8_t realm_key[VB_REALM_KEY_BYTES],
		     const uint8_t instance[VB_INSTANCE_BYTES], uint32_t zone, struct vb_cipher **out);
/* Cleanses the key. NULL is allowed. */
void vb_cipher_destroy(struct vb_cipher *cipher);

/* VB_INVALID (page out of its range), VB_EXHAUSTED, VB_CRYPTO: then the data of all jobs is cleansed. */
int vb_cipher_seal(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count);

/*
 * VB_AUTHENTICATION, or as for seal: then the data of all jobs is cleansed and *failed, where
 * given, is the index of the job that failed.
 */
int vb_cipher_open(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count, size_t *failed);

#endif
