/*
 * The trusted application's evidence with libcrypto's keys in place of OP-TEE's. The first line of standard output has
 * both public keys (COSE_Key, hexadecimal). Standard input: life cycle, room and request, 4 + 4 + 320 bytes each; a line
 * for each: result, length and, if there is one, the token.
 */
#include "../ta/eventlog.h"
#include "../ta/evidence.h"
#include "../ta/platform.h"

#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/obj_mac.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MAX 16384

static EC_KEY *secrets[2];
static struct signing_key keys[2];
static uint32_t state;

static void make(size_t which)
{
	static const uint8_t start[] = { 0xa4, 0x01, 0x02, 0x20, 0x01, 0x21, 0x58, 0x20 };
	static const uint8_t middle[] = { 0x22, 0x58, 0x20 };
	struct signing_key *key = &keys[which];
	uint8_t point[65] = { 0 };

	secrets[which] = EC_KEY_new_by_curve_name(NID_X9_62_prime256v1);
	if (!secrets[which] || !EC_KEY_generate_key(secrets[which]))
		abort();
	EC_POINT_point2oct(EC_KEY_get0_group(secrets[which]), EC_KEY_get0_public_key(secrets[which]),
			   POINT_CONVERSION_UNCOMPRESSED, point, sizeof(point), NULL);
	memcpy(key->cose_key, start, sizeof(start));
	memcpy(key->cose_key + sizeof(start), point + 1, 32);
	memcpy(key->cose_key + sizeof(start) + 32, middle, sizeof(middle));
	memcpy(key->cose_key + sizeof(start) + 32 + sizeof(middle), point + 33, 32);
	sha256(key->cose_key, sizeof(key->cose_key), key->fingerprint);
	key->object = (TEE_ObjectHandle)secrets[which];
}

TEE_Result platform_attestation_key(const struct signing_key **key)
{
	*key = &keys[0];
	return TEE_SUCCESS;
}

TEE_Result realm_attestation_key(const struct signing_key **key)
{
	*key = &keys[1];
	return TEE_SUCCESS;
}

TEE_Result sha256(const void *data, size_t length, uint8_t digest[HASH_BYTES])
{
	SHA256(data, length, digest);
	return TEE_SUCCESS;
}

TEE_Result sign(const struct signing_key *key, const uint8_t digest[HASH_BYTES], uint8_t signature[SIGNATURE_BYTES])
{
	ECDSA_SIG *pair = ECDSA_do_sign(digest, HASH_BYTES, (EC_KEY *)key->object);

	if (!pair)
		abort();
	BN_bn2binpad(ECDSA_SIG_get0_r(pair), signature, 32);
	BN_bn2binpad(ECDSA_SIG_get0_s(pair), signature + 32, 32);
	ECDSA_SIG_free(pair);
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

	make(0);
	make(1);
	print(keys[0].cose_key, sizeof(keys[0].cose_key));
	putchar(' ');
	print(keys[1].cose_key, sizeof(keys[1].cose_key));
	putchar('\n');
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
	EC_KEY_free(secrets[0]);
	EC_KEY_free(secrets[1]);
	return 0;
}
