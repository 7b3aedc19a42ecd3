/*
 * The trusted application's evidence with libcrypto's keys in place of OP-TEE's. Standard output begins with a line
 * for each suite: both public keys (COSE_Key, hexadecimal). Standard input: life cycle, room and request, 4 + 4 + 320 bytes each; a line
 * for each: result, length and, if there is one, the token.
 */
#include "../ta/cbor.h"
#include "../ta/eventlog.h"
#include "../ta/evidence.h"
#include "../ta/platform.h"

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MAX 16384

/* As in ../ta/suite.c, as far as the composer looks at it. */
static const struct suite suites[SUITES] = {
	{ .index = 0, .hash = "sha-256", .cose_algorithm = -7, .cose_curve = 1 },
	{ .index = 1, .hash = "sm3", .cose_algorithm = -70100, .cose_curve = -70101, .identity = "1234567812345678" },
};
static const char *const curves[SUITES] = { "P-256", "SM2" };
static const char *const digests[SUITES] = { "SHA256", "SM3" };
static struct signing_key keys[SUITES][2];
static uint32_t state;

static void make(struct signing_key *key, const struct suite *suite)
{
	EVP_PKEY *secret = suite->index ? EVP_PKEY_Q_keygen(NULL, NULL, "SM2") : EVP_EC_gen(curves[0]);
	uint8_t point[65] = { 0 };
	size_t length = 0;
	struct cbor out;

	if (!secret || !EVP_PKEY_get_octet_string_param(secret, OSSL_PKEY_PARAM_ENCODED_PUBLIC_KEY, point, sizeof(point),
						       &length) || length != sizeof(point))
		abort();
	cbor_init(&out, key->cose_key, sizeof(key->cose_key));
	cbor_map(&out, 4);
	cbor_int(&out, 1);
	cbor_int(&out, 2);
	cbor_int(&out, -1);
	cbor_int(&out, suite->cose_curve);
	cbor_int(&out, -2);
	cbor_bytes(&out, point + 1, 32);
	cbor_int(&out, -3);
	cbor_bytes(&out, point + 33, 32);
	key->cose_key_length = out.length;
	key->suite = suite;
	key->object = (TEE_ObjectHandle)secret;
	suite_digest(suite, NULL, 0, key->cose_key, key->cose_key_length, key->fingerprint);
}

const struct suite *suite_numbered(uint32_t number)
{
	return number == REQUEST_SUITE_NIST ? &suites[0] : number == REQUEST_SUITE_SM ? &suites[1] : NULL;
}

TEE_Result platform_attestation_key(const struct suite *suite, const struct signing_key **key)
{
	*key = &keys[suite->index][0];
	return TEE_SUCCESS;
}

TEE_Result realm_attestation_key(const struct suite *suite, const struct signing_key **key)
{
	*key = &keys[suite->index][1];
	return TEE_SUCCESS;
}

TEE_Result suite_digest(const struct suite *suite, const void *prefix, size_t prefix_length, const void *data, size_t length,
			uint8_t hash[HASH_BYTES])
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();

	if (!context || !EVP_DigestInit_ex(context, EVP_get_digestbyname(digests[suite->index]), NULL) ||
	    !EVP_DigestUpdate(context, prefix, prefix_length) || !EVP_DigestUpdate(context, data, length) ||
	    !EVP_DigestFinal_ex(context, hash, NULL))
		abort();
	EVP_MD_CTX_free(context);
	return TEE_SUCCESS;
}

TEE_Result sign(const struct signing_key *key, const void *message, size_t length, uint8_t signature[SIGNATURE_BYTES])
{
	const char *identity = key->suite->identity;
	EVP_PKEY *secret = (EVP_PKEY *)key->object;
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	EVP_PKEY_CTX *with = EVP_PKEY_CTX_new(secret, NULL);
	uint8_t der[80] = { 0 };
	const uint8_t *at = der;
	size_t size = sizeof(der);
	ECDSA_SIG *pair = NULL;

	if (!context || !with || (identity && EVP_PKEY_CTX_set1_id(with, identity, strlen(identity)) != 1))
		abort();
	EVP_MD_CTX_set_pkey_ctx(context, with);
	if (!EVP_DigestSignInit(context, NULL, EVP_get_digestbyname(digests[key->suite->index]), NULL, secret) ||
	    EVP_DigestSign(context, der, &size, message, length) != 1)
		abort();
	pair = d2i_ECDSA_SIG(NULL, &at, (long)size);
	if (!pair)
		abort();
	BN_bn2binpad(ECDSA_SIG_get0_r(pair), signature, 32);
	BN_bn2binpad(ECDSA_SIG_get0_s(pair), signature + 32, 32);
	ECDSA_SIG_free(pair);
	EVP_MD_CTX_free(context);
	EVP_PKEY_CTX_free(with);
	return TEE_SUCCESS;
}

TEE_Result platform_lifecycle(uint32_t *out)
{
	*out = state;
	return TEE_SUCCESS;
}

TEE_Result platform_components(struct component components[COMPONENTS_MAX], uint8_t signer[COMPONENT_DIGEST_BYTES])
{
	memset(components, 0, COMPONENTS_MAX * sizeof(components[0]));
	for (size_t i = 0; i < COMPONENTS_MAX; i++)
		snprintf(components[i].name, sizeof(components[i].name), "PART_%zu", i);
	memset(signer, 0x5a, COMPONENT_DIGEST_BYTES);
	return TEE_SUCCESS;
}

TEE_Result read_boot_events(struct boot_events *log)
{
	memset(log, 0, sizeof(*log));
	log->count = 2;
	strcpy(log->events[0].name, "BL31");
	strcpy(log->events[1].name, "BL33");
	memset(log->events[1].digest, 0x33, HASH_BYTES);
	return TEE_SUCCESS;
}

static void print(const uint8_t *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		printf("%02x", data[i]);
}

int main(void)
{
	struct realm_request request;
	uint32_t words[2];
	size_t i = 0;
	size_t j = 0;

	for (i = 0; i < SUITES; i++) {
		for (j = 0; j < 2; j++) {
			make(&keys[i][j], &suites[i]);
			print(keys[i][j].cose_key, keys[i][j].cose_key_length);
			putchar(j ? '\n' : ' ');
		}
	}
	while (fread(words, sizeof(words), 1, stdin) == 1 && fread(&request, sizeof(request), 1, stdin) == 1) {
		size_t size = words[1] < ROOM_MAX ? words[1] : ROOM_MAX;
		uint8_t *out = malloc(size ? size : 1); /* exactly so long: the sanitizer watches its end */
		TEE_Result res = TEE_SUCCESS;

		state = words[0];
		res = compose_evidence(&request, out, &size);
		printf("%08x %zu ", res, size);
		if (!res)
			print(out, size);
		putchar('\n');
		free(out);
	}
	for (i = 0; i < SUITES; i++)
		for (j = 0; j < 2; j++)
			EVP_PKEY_free((EVP_PKEY *)keys[i][j].object);
	return 0;
}
