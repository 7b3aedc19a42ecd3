#include "cipher.h"

#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "erase.h"
#include "status.h"

#define NONCE_BYTES 12
#define AD_BYTES (VB_INSTANCE_BYTES + 4 + 8)
#define MAXIMUM_KEY_BYTES 32

static const struct algorithm {
	const char *name;
	size_t key_bytes;
} algorithms[] = {
	[VB_AES_256_GCM] = {"AES-256-GCM", 32},
	[VB_SM4_GCM] = {"SM4-GCM", 16},
};

struct vb_cipher {
	EVP_CIPHER_CTX *context; /* holds the key; one for both directions, so that it exists once */
	uint32_t zone;
	uint8_t instance[VB_INSTANCE_BYTES];
};

static void put_be(uint8_t *out, size_t bytes, uint64_t value)
{
	while (bytes--) {
		out[bytes] = (uint8_t)value;
		value >>= 8;
	}
}

static int context_create(enum vb_cipher_kind kind, const uint8_t *key, EVP_CIPHER_CTX **out)
{
	EVP_CIPHER *algorithm = EVP_CIPHER_fetch(NULL, algorithms[kind].name, NULL);
	EVP_CIPHER_CTX *context = NULL;
	int status = VB_OK;

	if (!algorithm) {
		ERR_clear_error();
		return VB_NO_CIPHER;
	}
	context = EVP_CIPHER_CTX_new();
	if (!context || EVP_EncryptInit_ex2(context, algorithm, key, NULL, NULL) != 1) {
		ERR_clear_error();
		EVP_CIPHER_CTX_free(context);
		context = NULL;
		status = VB_CRYPTO;
	}
	EVP_CIPHER_free(algorithm);
	*out = context;
	return status;
}

/* One message in place. For decryption `tag` is checked, for encryption it is written. */
static int gcm(EVP_CIPHER_CTX *context, bool encrypt, const uint8_t nonce[NONCE_BYTES], const uint8_t *ad,
	       size_t ad_bytes, uint8_t *data, size_t bytes, uint8_t tag[VB_TAG_BYTES])
{
	int length = 0;
	bool ok = EVP_CipherInit_ex2(context, NULL, NULL, nonce, encrypt, NULL) == 1;

	if (ok && !encrypt)
		ok = EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, VB_TAG_BYTES, tag) == 1;
	ok = ok && EVP_CipherUpdate(context, NULL, &length, ad, (int)ad_bytes) == 1 &&
	     EVP_CipherUpdate(context, data, &length, data, (int)bytes) == 1 && (size_t)length == bytes;
	if (!ok) {
		ERR_clear_error();
		return VB_CRYPTO;
	}
	if (EVP_CipherFinal_ex(context, data + bytes, &length) != 1) {
		ERR_clear_error();
		return encrypt ? VB_CRYPTO : VB_AUTHENTICATION;
	}
	if (encrypt && EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, VB_TAG_BYTES, tag) != 1)
		return VB_CRYPTO;
	return VB_OK;
}

static const struct known_answer {
	uint8_t key[32], nonce[NONCE_BYTES], ad[20], plain[64], sealed[64], tag[VB_TAG_BYTES];
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

int vb_cipher_self_test(enum vb_cipher_kind kind)
{
	const struct known_answer *answer = &known_answers[kind];
	EVP_CIPHER_CTX *context = NULL;
	uint8_t data[sizeof answer->plain], tag[VB_TAG_BYTES];
	int status = context_create(kind, answer->key, &context);

	if (status)
		return status;
	memcpy(data, answer->plain, sizeof data);
	status = gcm(context, true, answer->nonce, answer->ad, sizeof answer->ad, data, answer->bytes, tag);
	if (!status && (memcmp(data, answer->sealed, answer->bytes) || memcmp(tag, answer->tag, sizeof tag)))
		status = VB_SELF_TEST;
	if (!status)
		status = gcm(context, false, answer->nonce, answer->ad, sizeof answer->ad, data, answer->bytes,
			     tag);
	if (!status && memcmp(data, answer->plain, answer->bytes))
		status = VB_SELF_TEST;
	if (!status) {
		memcpy(data, answer->sealed, sizeof data);
		tag[0] ^= 1;
		if (gcm(context, false, answer->nonce, answer->ad, sizeof answer->ad, data, answer->bytes,
			tag) != VB_AUTHENTICATION)
			status = VB_SELF_TEST;
	} else if (status == VB_AUTHENTICATION) {
		status = VB_SELF_TEST;
	}
	EVP_CIPHER_CTX_free(context);
	return status;
}

static int derive(enum vb_cipher_kind kind, const uint8_t *realm_key, const uint8_t *instance, uint32_t zone,
		  uint8_t *out)
{
	const char *name = algorithms[kind].name;
	uint8_t info[64] = "vambrace zone key 1:";
	size_t length = strlen((char *)info);
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *context = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	bool ok = false;

	memcpy(info + length, name, strlen(name));
	length += strlen(name);
	put_be(info + length, 4, zone);
	length += 4;
	if (context) {
		OSSL_PARAM parameters[] = {
			OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
			OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)realm_key,
							  VB_REALM_KEY_BYTES),
			OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)instance,
							  VB_INSTANCE_BYTES),
			OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, length),
			OSSL_PARAM_construct_end(),
		};
		ok = EVP_KDF_derive(context, out, algorithms[kind].key_bytes, parameters) == 1;
	}
	EVP_KDF_CTX_free(context);
	EVP_KDF_free(kdf);
	if (ok)
		return VB_OK;
	ERR_clear_error();
	return VB_CRYPTO;
}

int vb_cipher_create(enum vb_cipher_kind kind, const uint8_t realm_key[VB_REALM_KEY_BYTES],
		     const uint8_t instance[VB_INSTANCE_BYTES], uint32_t zone, struct vb_cipher **out)
{
	uint8_t key[MAXIMUM_KEY_BYTES];
	struct vb_cipher *cipher = OPENSSL_zalloc(sizeof *cipher);
	int status;

	if (!cipher)
		return VB_CRYPTO;
	cipher->zone = zone;
	memcpy(cipher->instance, instance, VB_INSTANCE_BYTES);
	status = derive(kind, realm_key, instance, zone, key);
	if (!status)
		status = context_create(kind, key, &cipher->context);
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
	EVP_CIPHER_CTX_free(cipher->context); /* libcrypto cleanses the key schedule in it */
	OPENSSL_clear_free(cipher, sizeof *cipher);
}

static int page_crypt(struct vb_cipher *cipher, const struct vb_job *job, bool encrypt)
{
	uint8_t nonce[NONCE_BYTES], ad[AD_BYTES];

	if (job->page >= VB_PAGE_LIMIT)
		return VB_INVALID;
	if (job->version >= VB_VERSION_LIMIT)
		return VB_EXHAUSTED;
	put_be(nonce, 5, job->page);
	put_be(nonce + 5, 7, job->version);
	memcpy(ad, cipher->instance, VB_INSTANCE_BYTES);
	put_be(ad + VB_INSTANCE_BYTES, 4, cipher->zone);
	put_be(ad + VB_INSTANCE_BYTES + 4, 8, job->page);
	return gcm(cipher->context, encrypt, nonce, ad, sizeof ad, job->data, VB_PAGE_SIZE_BYTES, job->tag);
}

static int pages_crypt(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count, bool encrypt,
		       size_t *failed)
{
	for (size_t i = 0; i < count; i++) {
		int status = page_crypt(cipher, &jobs[i], encrypt);

		if (status) {
			for (size_t j = 0; j < count; j++)
				vb_erase(jobs[j].data, VB_PAGE_SIZE_BYTES);
			if (failed)
				*failed = i;
			return status;
		}
	}
	return VB_OK;
}

int vb_cipher_seal(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count)
{
	return pages_crypt(cipher, jobs, count, true, NULL);
}

int vb_cipher_open(struct vb_cipher *cipher, const struct vb_job *jobs, size_t count, size_t *failed)
{
	return pages_crypt(cipher, jobs, count, false, failed);
}
