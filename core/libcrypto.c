/* The provider that is always there: OpenSSL's libcrypto through its EVP interface, and so the CPU's instructions. */
#include "provider.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "erase.h"
#include "status.h"

struct session {
	EVP_CIPHER_CTX *context; /* holds the key; one for both directions, so that it exists once */
	int status;
	size_t failed;
};

static const char *const names[] = {
	[VB_AES_256_GCM] = "AES-256-GCM",
	[VB_SM4_GCM] = "SM4-GCM",
};

static void session_close(void *session)
{
	struct session *self = session;

	EVP_CIPHER_CTX_free(self->context); /* libcrypto cleanses the key schedule in it */
	OPENSSL_free(self);
}

static int session_open(enum vb_cipher_kind kind, const uint8_t *key, size_t key_bytes, void **session)
{
	EVP_CIPHER *algorithm = EVP_CIPHER_fetch(NULL, names[kind], NULL);
	struct session *self = OPENSSL_zalloc(sizeof *self);
	int status = VB_OK;

	if (!algorithm || EVP_CIPHER_get_key_length(algorithm) != (int)key_bytes)
		status = VB_NO_CIPHER;
	else if (!self || !(self->context = EVP_CIPHER_CTX_new()) ||
		 EVP_EncryptInit_ex2(self->context, algorithm, key, NULL, NULL) != 1)
		status = VB_CRYPTO;
	EVP_CIPHER_free(algorithm);
	if (status) {
		ERR_clear_error();
		if (self)
			session_close(self);
		return status;
	}
	*session = self;
	return VB_OK;
}

static int crypt_message(EVP_CIPHER_CTX *context, struct vb_message *message, bool encrypt)
{
	int length = 0;
	bool ok = EVP_CipherInit_ex2(context, NULL, NULL, message->nonce, encrypt, NULL) == 1;

	if (ok && !encrypt)
		ok = EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, VB_TAG_BYTES, message->tag) == 1;
	ok = ok && EVP_CipherUpdate(context, NULL, &length, message->ad, (int)message->ad_bytes) == 1 &&
	     EVP_CipherUpdate(context, message->data, &length, message->data, (int)message->bytes) == 1 &&
	     (size_t)length == message->bytes;
	if (!ok)
		return VB_CRYPTO;
	if (EVP_CipherFinal_ex(context, message->data + message->bytes, &length) != 1)
		return encrypt ? VB_CRYPTO : VB_AUTHENTICATION;
	if (encrypt && EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, VB_TAG_BYTES, message->tag) != 1)
		return VB_CRYPTO;
	return VB_OK;
}

static int session_begin(void *session, struct vb_message *messages, size_t count, bool encrypt)
{
	struct session *self = session;

	self->status = VB_OK;
	for (size_t i = 0; i < count && !self->status; i++) {
		if (i + 1 < count)
			vb_prefetch(messages[i + 1].data, messages[i + 1].bytes);
		self->status = crypt_message(self->context, &messages[i], encrypt);
		self->failed = i;
	}
	if (self->status)
		ERR_clear_error();
	return VB_OK;
}

static int session_finish(void *session, size_t *failed)
{
	const struct session *self = session;

	*failed = self->failed;
	return self->status;
}

const struct vb_provider vb_libcrypto = {
	.name = "libcrypto",
	.open = session_open,
	.close = session_close,
	.begin = session_begin,
	.finish = session_finish,
};
