/*
 * Authenticated encryption of pages in place, in batches, by a provider.
 *
 *   zone secret = HKDF(key of the Realm, salt = instance, info = label ‖ zone)
 *   page key    = HKDF(zone secret, salt = instance, info = label ‖ cipher ‖ epoch)
 *   nonce       = page within the zone (40 bits) ‖ version (56 bits), big-endian
 *   AD          = instance (16) ‖ zone (32 bits) ‖ page (64 bits), big-endian
 *
 * HKDF is over SHA-256 for AES-256-GCM, over SM3 for SM4-GCM.
 *
 * A page's version rises at each encryption, so that a nonce is never used twice under a key. Before a version could
 * repeat, the zone goes to its next epoch: all its pages get encrypted again, under the next key, from version 1 on.
 * GCM's bound on data under one key (2^64 blocks, birthday bound near 2^48 blocks = 4 PB) is far from what a Realm
 * encrypts between its start and its destruction.
 */
#ifndef VAMBRACE_CIPHER_H
#define VAMBRACE_CIPHER_H

#include <stddef.h>
#include <stdint.h>

#include "provider.h"
#include "zone.h"

#define VB_PAGE_SIZE_BYTES ((size_t)4096)
#define VB_REALM_KEY_BYTES 32
#define VB_INSTANCE_BYTES 16
#define VB_SECRET_BYTES 32
#define VB_PAGE_LIMIT ((uint64_t)1 << 40)
#define VB_VERSION_LIMIT ((uint64_t)1 << 48)

/* What a zone's ciphers are made from. */
struct vb_secret {
	const struct vb_provider *provider;
	enum vb_cipher_kind kind;
	uint32_t zone;
	uint32_t epoch;
	uint8_t instance[VB_INSTANCE_BYTES];
	uint8_t secret[VB_SECRET_BYTES];
};

struct vb_job {
	uint64_t page;    /* within the zone */
	uint64_t version;
	uint8_t *data;    /* VB_PAGE_SIZE_BYTES, changed in place */
	uint8_t *tag;     /* VB_TAG_BYTES, written by seal, read by open */
};

/* For one thread at a time. */
struct vb_cipher;

/* Known answers both ways, and a wrong tag. VB_NO_CIPHER, VB_SELF_TEST, VB_CRYPTO. */
int vb_cipher_self_test(const struct vb_provider *provider, enum vb_cipher_kind kind);

/* Epoch 0. VB_CRYPTO. */
int vb_secret_create(struct vb_secret *secret, const struct vb_provider *provider, enum vb_cipher_kind kind,
		     const uint8_t realm_key[VB_REALM_KEY_BYTES], const uint8_t instance[VB_INSTANCE_BYTES],
		     uint32_t zone);
void vb_secret_erase(struct vb_secret *secret);

/* For the secret's present epoch. */
int vb_cipher_create(const struct vb_secret *secret, struct vb_cipher **out);
/* Cleanses the key. NULL is allowed. */
void vb_cipher_destroy(struct vb_cipher *cipher);
uint32_t vb_cipher_epoch(const struct vb_cipher *cipher);

/*
 * Begins to encrypt at most VB_RUN pages, and waits for them. The jobs may go after `begin`, what they point to not before
 * `finish`, which comes exactly once after each `begin` that gave VB_OK.
 * VB_INVALID (a page or their number out of range), VB_EXHAUSTED, VB_CRYPTO: then the data of all jobs is erased.
 */
int vb_seal_begin(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count);
int vb_seal_finish(struct vb_cipher *cipher);

/*
 * Decrypts at most VB_RUN pages. VB_AUTHENTICATION, or as for seal: then the data of all jobs is erased and *failed is the
 * index of the job that failed.
 */
int vb_open_pages(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count, size_t *failed);

#endif
