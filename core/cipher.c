#include "cipher.h"

#include <stdbool.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "erase.h"
#include "status.h"

#define MAXIMUM_KEY_BYTES 32

/* A cipher's keys are derived with the hash of its suite. */
static const struct algorithm {
	const char *name;
	const char *digest;
	size_t key_bytes;
} algorithms[] = {
	[VB_AES_256_GCM] = {"AES-256-GCM", "SHA256", 32},
	[VB_SM4_GCM] = {"SM4-GCM", "SM3", 16},
};

struct vb_cipher {
	const struct vb_provider *provider;
	void *session;
	uint32_t epoch;
	uint8_t ad[VB_AD_BYTES]; /* up to the page */
	size_t count;            /* of the batch under way */
	struct vb_message messages[VB_RUN];
};

static void put_be(uint8_t *out, size_t bytes, uint64_t value)
{
	while (bytes--) {
		out[bytes] = (uint8_t)value;
		value >>= 8;
	}
}

/* --- known answers ------------------------------------------------------------------------------------------- */

static const struct known_answer {
	uint8_t key[32], nonce[VB_NONCE_BYTES], ad[20], plain[64], sealed[64], tag[VB_TAG_BYTES];
	size_t bytes;
} known_answers[] = {
	/* McGrew and Viega, The Galois/Counter Mode of Operation, test case 16 */
	[VB_AES_256_GCM] = {
		"\xfe\xff\xe9\x92\x86\x65\x73\x1c\x6d\x6a\x8f\x94\x67\x30\x83\x08"
		"\xfe\xff\xe9\x92\x86\x65\x73\x1c\x6d\x6a\x8f\x94\x67\x30\x83\x08",
		"\xca\xfe\xba\xbe\xfa\xce\xdb\xad\xde\xca\xf8\x88",
		"\xfe\xed\xfa\xce\xde\xad\xbe\xef\xfe\xed\xfa\xce\xde\xad\xbe\xef\xab\xad\xda\xd2",
		"\xd9\x31\x32\x25\xf8\x84\x06\xe5\xa5\x59\x09\xc5\xaf\xf5\x26\x9a"
		"\x86\xa7\xa9\x53\x15\x34\xf7\xda\x2e\x4c\x30\x3d\x8a\x31\x8a\x72"
		"\x1c\x3c\x0c\x95\x95\x68\x09\x53\x2f\xcf\x0e\x24\x49\xa6\xb5\x25"
		"\xb1\x6a\xed\xf5\xaa\x0d\xe6\x57\xba\x63\x7b\x39",
		"\x52\x2d\xc1\xf0\x99\x56\x7d\x07\xf4\x7f\x37\xa3\x2a\x84\x42\x7d"
		"\x64\x3a\x8c\xdc\xbf\xe5\xc0\xc9\x75\x98\xa2\xbd\x25\x55\xd1\xaa"
		"\x8c\xb0\x8e\x48\x59\x0d\xbb\x3d\xa7\xb0\x8b\x10\x56\x82\x88\x38"
		"\xc5\xf6\x1e\x63\x93\xba\x7a\x0a\xbc\xc9\xf6\x62",
		"\x76\xfc\x6e\xce\x0f\x4e\x17\x68\xcd\xdf\x88\x53\xbb\x2d\x55\x1b",
		60,
	},
	/* RFC 8998, A.1 */
	[VB_SM4_GCM] = {
		"\x01\x23\x45\x67\x89\xab\xcd\xef\xfe\xdc\xba\x98\x76\x54\x32\x10",
		"\x00\x00\x12\x34\x56\x78\x00\x00\x00\x00\xab\xcd",
		"\xfe\xed\xfa\xce\xde\xad\xbe\xef\xfe\xed\xfa\xce\xde\xad\xbe\xef\xab\xad\xda\xd2",
		"\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xbb\xbb\xbb\xbb\xbb\xbb\xbb\xbb"
		"\xcc\xcc\xcc\xcc\xcc\xcc\xcc\xcc\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd"
		"\xee\xee\xee\xee\xee\xee\xee\xee\xff\xff\xff\xff\xff\xff\xff\xff"
		"\xee\xee\xee\xee\xee\xee\xee\xee\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa",
		"\x17\xf3\x99\xf0\x8c\x67\xd5\xee\x19\xd0\xdc\x99\x69\xc4\xbb\x7d"
		"\x5f\xd4\x6f\xd3\x75\x64\x89\x06\x91\x57\xb2\x82\xbb\x20\x07\x35"
		"\xd8\x27\x10\xca\x5c\x22\xf0\xcc\xfa\x7c\xbf\x93\xd4\x96\xac\x15"
		"\xa5\x68\x34\xcb\xcf\x98\xc3\x97\xb4\x02\x4a\x26\x91\x23\x3b\x8d",
		"\x83\xde\x35\x41\xe4\xc2\xb5\x81\x77\xe0\x65\xa9\xbf\x7b\x62\xec",
		64,
	},
};


static int one_message(const struct vb_provider *provider, void *session, struct vb_message *message, bool encrypt)
{
	size_t failed;
	int status = provider->begin(session, message, 1, encrypt);

	return status ? status : provider->finish(session, &failed);
}

int vb_cipher_self_test(const struct vb_provider *provider, enum vb_cipher_kind kind)
{
	const struct known_answer *answer = &known_answers[kind];
	uint8_t data[sizeof answer->plain], tag[VB_TAG_BYTES] = {0};
	struct vb_message message = {
		.data = data, .bytes = answer->bytes, .tag = tag, .ad_bytes = sizeof answer->ad};
	void *session = NULL;
	int status = provider->open(kind, answer->key, algorithms[kind].key_bytes, &session);

	if (status)
		return status;
	memcpy(message.ad, answer->ad, sizeof answer->ad);
	memcpy(message.nonce, answer->nonce, sizeof answer->nonce);
	memcpy(data, answer->plain, sizeof data);
	status = one_message(provider, session, &message, true);
	if (!status && (memcmp(data, answer->sealed, answer->bytes) || memcmp(tag, answer->tag, sizeof tag)))
		status = VB_SELF_TEST;
	if (!status)
		status = one_message(provider, session, &message, false);
	if (!status && memcmp(data, answer->plain, answer->bytes))
		status = VB_SELF_TEST;
	if (status == VB_AUTHENTICATION)
		status = VB_SELF_TEST;
	if (!status) {
		memcpy(data, answer->sealed, sizeof data);
		tag[0] ^= 1;
		if (one_message(provider, session, &message, false) != VB_AUTHENTICATION)
			status = VB_SELF_TEST;
	}
	provider->close(session);
	return status;
}

/* --- keys ---------------------------------------------------------------------------------------------------- */

static int derive(enum vb_cipher_kind kind, const uint8_t *key, size_t key_bytes, const uint8_t *salt, size_t salt_bytes,
		  const uint8_t *info, size_t info_bytes, uint8_t *out, size_t out_bytes)
{
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *context = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	OSSL_PARAM parameters[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)algorithms[kind].digest, 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)key, key_bytes),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)salt, salt_bytes),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)info, info_bytes),
		OSSL_PARAM_construct_end(),
	};
	bool ok = context && EVP_KDF_derive(context, out, out_bytes, parameters) == 1;

	EVP_KDF_CTX_free(context);
	EVP_KDF_free(kdf);
	if (ok)
		return VB_OK;
	ERR_clear_error();
	return VB_CRYPTO;
}

/* label ‖ word ‖ number (32 bits); gives the length. */
static size_t info_of(uint8_t out[64], const char *label, const char *word, uint32_t number)
{
	size_t length = strlen(label);

	memcpy(out, label, length);
	memcpy(out + length, word, strlen(word));
	length += strlen(word);
	put_be(out + length, 4, number);
	return length + 4;
}

int vb_secret_create(struct vb_secret *secret, const struct vb_provider *provider, enum vb_cipher_kind kind,
		     const uint8_t realm_key[VB_REALM_KEY_BYTES], const uint8_t instance[VB_INSTANCE_BYTES],
		     uint32_t zone)
{
	uint8_t info[64];
	size_t length = info_of(info, "vambrace zone secret 1:", "", zone);

	*secret = (struct vb_secret){.provider = provider, .kind = kind, .zone = zone};
	memcpy(secret->instance, instance, VB_INSTANCE_BYTES);
	return derive(kind, realm_key, VB_REALM_KEY_BYTES, instance, VB_INSTANCE_BYTES, info, length, secret->secret,
		      VB_SECRET_BYTES);
}

void vb_secret_erase(struct vb_secret *secret)
{
	OPENSSL_cleanse(secret->secret, VB_SECRET_BYTES);
}

int vb_cipher_create(const struct vb_secret *secret, struct vb_cipher **out)
{
	uint8_t key[MAXIMUM_KEY_BYTES], info[64];
	size_t length = info_of(info, "vambrace page key 1:", algorithms[secret->kind].name, secret->epoch);
	size_t key_bytes = algorithms[secret->kind].key_bytes;
	struct vb_cipher *cipher = OPENSSL_zalloc(sizeof *cipher);
	int status;

	if (!cipher)
		return VB_CRYPTO;
	cipher->provider = secret->provider;
	cipher->epoch = secret->epoch;
	memcpy(cipher->ad, secret->instance, VB_INSTANCE_BYTES);
	put_be(cipher->ad + VB_INSTANCE_BYTES, 4, secret->zone);
	status = derive(secret->kind, secret->secret, VB_SECRET_BYTES, secret->instance, VB_INSTANCE_BYTES, info, length,
			key, key_bytes);
	if (!status)
		status = secret->provider->open(secret->kind, key, key_bytes, &cipher->session);
	OPENSSL_cleanse(key, sizeof key);
	if (status) {
		vb_cipher_destroy(cipher);
		return status;
	}
	*out = cipher;
	return VB_OK;
}

void vb_cipher_destroy(struct vb_cipher *cipher)
{
	if (!cipher)
		return;
	if (cipher->session)
		cipher->provider->close(cipher->session);
	OPENSSL_clear_free(cipher, sizeof *cipher);
}

uint32_t vb_cipher_epoch(const struct vb_cipher *cipher)
{
	return cipher->epoch;
}

/* --- pages --------------------------------------------------------------------------------------------------- */

static int message_of(const struct vb_cipher *cipher, const struct vb_job *job, struct vb_message *message)
{
	message->data = job->data;
	message->bytes = VB_PAGE_SIZE_BYTES;
	message->tag = job->tag;
	message->ad_bytes = VB_AD_BYTES;
	memcpy(message->ad, cipher->ad, VB_AD_BYTES - 8);
	put_be(message->ad + VB_AD_BYTES - 8, 8, job->page);
	put_be(message->nonce, 5, job->page);
	put_be(message->nonce + 5, 7, job->version);
	if (job->page >= VB_PAGE_LIMIT)
		return VB_INVALID;
	return job->version < VB_VERSION_LIMIT ? VB_OK : VB_EXHAUSTED;
}

static int begin(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count, bool encrypt, size_t *failed)
{
	int status = count && count <= VB_RUN ? VB_OK : VB_INVALID;

	*failed = 0;
	for (size_t i = 0; i < count && !status; i++) {
		status = message_of(cipher, &jobs[i], &cipher->messages[i]);
		*failed = i;
	}
	if (!status)
		status = cipher->provider->begin(cipher->session, cipher->messages, count, encrypt);
	cipher->count = count;
	if (status)
		for (size_t i = 0; i < count; i++)
			vb_erase(jobs[i].data, VB_PAGE_SIZE_BYTES);
	return status;
}

static int finish(struct vb_cipher *cipher, size_t *failed)
{
	int status = cipher->provider->finish(cipher->session, failed);

	if (status)
		for (size_t i = 0; i < cipher->count; i++)
			vb_erase(cipher->messages[i].data, VB_PAGE_SIZE_BYTES);
	return status;
}

int vb_seal_begin(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count)
{
	size_t failed;

	return begin(cipher, jobs, count, true, &failed);
}

int vb_seal_finish(struct vb_cipher *cipher)
{
	size_t failed;

	return finish(cipher, &failed);
}

int vb_open_pages(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count, size_t *failed)
{
	int status = begin(cipher, jobs, count, false, failed);

	return status ? status : finish(cipher, failed);
}
