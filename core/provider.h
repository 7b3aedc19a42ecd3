/*
 * Who computes ciphers: libcrypto, or an accelerator. Batches go in at once and come back when they are asked for, so that
 * the caller moves pages meanwhile. A session is used by one thread at a time, and has at most one batch under way.
 */
#ifndef VAMBRACE_PROVIDER_H
#define VAMBRACE_PROVIDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VB_NONCE_BYTES 12
#define VB_AD_BYTES 28
#define VB_TAG_BYTES 16

enum vb_cipher_kind { VB_AES_256_GCM, VB_SM4_GCM };

/* One message, changed in place. */
struct vb_message {
	uint8_t *data;
	size_t bytes;
	uint8_t *tag; /* VB_TAG_BYTES, written by encryption, read by decryption */
	size_t ad_bytes;
	uint8_t ad[VB_AD_BYTES];
	uint8_t nonce[VB_NONCE_BYTES];
};

struct vb_provider {
	const char *name;
	/* The key is not needed after the call. VB_NO_CIPHER, VB_CRYPTO. */
	int (*open)(enum vb_cipher_kind kind, const uint8_t *key, size_t key_bytes, void **session);
	/* Cleanses the key. */
	void (*close)(void *session);
	/* Takes a batch; the messages stay the provider's until `finish`. Returns VB_OK or VB_CRYPTO: then none was taken. */
	int (*begin)(void *session, struct vb_message *messages, size_t count, bool encrypt);
	/*
	 * Waits for the batch. VB_AUTHENTICATION or VB_CRYPTO: *failed is the index of a message that failed, and what became of
	 * the others' data is not said.
	 */
	int (*finish)(void *session, size_t *failed);
};

/* In this process, at once. */
extern const struct vb_provider vb_libcrypto;

#endif
