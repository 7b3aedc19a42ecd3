// SPDX-License-Identifier: Apache-2.0
#include "keys.h"

#include "cbor.h"
#include "pair.h"
#include "pta.h"

#include <pta_system.h>
#include <string.h>

#define HALF_BYTES (WIDE_BYTES / 2)
#define LABEL_MAX 64
#define IDENTITY_MAX 32

_Static_assert(HALF_BYTES == HASH_BYTES, "a half is derived at once");

/* By suite. */
static struct signing_key platform[SUITES];
static struct signing_key realm[SUITES];

TEE_Result sign(const struct signing_key *key, const void *message, size_t length, uint8_t signature[SIGNATURE_BYTES])
{
	TEE_OperationHandle operation = TEE_HANDLE_NULL;
	uint8_t hash[HASH_BYTES] = { 0 };
	size_t size = SIGNATURE_BYTES;
	TEE_Result res = suite_digest(key->suite, key->prefix, key->prefix_length, message, length, hash);

	if (res)
		return res;
	res = TEE_AllocateOperation(&operation, key->suite->signature, TEE_MODE_SIGN, 256);
	if (res)
		return res;
	res = TEE_SetOperationKey(operation, key->object);
	if (!res)
		res = TEE_AsymmetricSignDigest(operation, NULL, 0, hash, HASH_BYTES, signature, &size);
	TEE_FreeOperation(operation);
	return !res && size != SIGNATURE_BYTES ? TEE_ERROR_GENERIC : res;
}

/* What SM2 hashes before each message (GB/T 32918.2, 5.5): identity with its length in bits, curve, generator, key. */
static TEE_Result prepare(struct signing_key *key, const uint8_t x[COORDINATE_BYTES], const uint8_t y[COORDINATE_BYTES])
{
	const struct curve *curve = key->suite->curve;
	const char *identity = key->suite->identity;
	const uint8_t *parts[] = { curve ? curve->a : NULL, curve ? curve->b : NULL, curve ? curve->x : NULL,
				   curve ? curve->y : NULL, x, y };
	uint8_t all[2 + IDENTITY_MAX + sizeof(parts) / sizeof(parts[0]) * COORDINATE_BYTES] = { 0 };
	size_t length = 0;
	size_t i = 0;

	if (!identity)
		return TEE_SUCCESS;
	if (!curve || strlen(identity) > IDENTITY_MAX)
		return TEE_ERROR_GENERIC;
	all[length++] = (uint8_t)(strlen(identity) * 8 >> 8);
	all[length++] = (uint8_t)(strlen(identity) * 8);
	memcpy(all + length, identity, strlen(identity));
	length += strlen(identity);
	for (i = 0; i < sizeof(parts) / sizeof(parts[0]); i++, length += COORDINATE_BYTES)
		memcpy(all + length, parts[i], COORDINATE_BYTES);
	key->prefix_length = HASH_BYTES;
	return suite_digest(key->suite, NULL, 0, all, length, key->prefix);
}

/* Fill in what is public of ``key`` from its coordinates. */
static TEE_Result publish(struct signing_key *key, const uint8_t x[COORDINATE_BYTES], const uint8_t y[COORDINATE_BYTES])
{
	struct cbor out;
	TEE_Result res = prepare(key, x, y);

	if (res)
		return res;
	cbor_init(&out, key->cose_key, sizeof(key->cose_key));
	cbor_map(&out, 4);
	cbor_int(&out, 1); /* kty: EC2 */
	cbor_int(&out, 2);
	cbor_int(&out, -1); /* crv */
	cbor_int(&out, key->suite->cose_curve);
	cbor_int(&out, -2);
	cbor_bytes(&out, x, COORDINATE_BYTES);
	cbor_int(&out, -3);
	cbor_bytes(&out, y, COORDINATE_BYTES);
	if (out.overflow)
		return TEE_ERROR_GENERIC;
	key->cose_key_length = out.length;
	return suite_digest(key->suite, NULL, 0, key->cose_key, key->cose_key_length, key->fingerprint);
}

TEE_Result derive_unique_key(void *info, size_t length, uint8_t key[HASH_BYTES])
{
	static const TEE_UUID system_pta = PTA_SYSTEM_UUID;
	const uint32_t types = TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT,
					       TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE);
	TEE_Param params[4] = { 0 };

	params[0].memref.buffer = info;
	params[0].memref.size = length;
	params[1].memref.buffer = key;
	params[1].memref.size = HASH_BYTES;
	return ask_pta(&system_pta, PTA_SYSTEM_DERIVE_TA_UNIQUE_KEY, types, params);
}

/* WIDE_BYTES of key material, in two halves. */
static TEE_Result derive(const struct suite *suite, uint8_t wide[WIDE_BYTES])
{
	const size_t length = strlen(suite->label);
	uint8_t info[LABEL_MAX + 1] = { 0 };
	size_t half = 0;
	TEE_Result res = length > LABEL_MAX ? TEE_ERROR_GENERIC : TEE_SUCCESS;

	if (!res)
		memcpy(info, suite->label, length);
	for (half = 0; !res && half < 2; half++) {
		info[length] = (uint8_t)half;
		res = derive_unique_key(info, length + 1, wide + half * HALF_BYTES);
	}
	return res;
}

static TEE_Result make_platform_key(struct signing_key *key)
{
	const struct suite *suite = key->suite;
	uint8_t wide[WIDE_BYTES] = { 0 };
	uint8_t scalar[COORDINATE_BYTES] = { 0 };
	uint8_t x[COORDINATE_BYTES] = { 0 };
	uint8_t y[COORDINATE_BYTES] = { 0 };
	TEE_ObjectHandle object = TEE_HANDLE_NULL;
	TEE_Attribute attributes[4] = { 0 };
	TEE_Result res = derive(suite, wide);

	if (!res && compute_pair(suite, wide, scalar, x, y))
		res = TEE_ERROR_GENERIC;
	TEE_InitRefAttribute(&attributes[0], TEE_ATTR_ECC_PRIVATE_VALUE, scalar, sizeof(scalar));
	TEE_InitRefAttribute(&attributes[1], TEE_ATTR_ECC_PUBLIC_VALUE_X, x, sizeof(x));
	TEE_InitRefAttribute(&attributes[2], TEE_ATTR_ECC_PUBLIC_VALUE_Y, y, sizeof(y));
	TEE_InitValueAttribute(&attributes[3], TEE_ATTR_ECC_CURVE, suite->key_curve, 0);
	if (!res)
		res = TEE_AllocateTransientObject(suite->key_type, 256, &object);
	if (!res)
		res = TEE_PopulateTransientObject(object, attributes, suite->key_curve ? 4 : 3);
	TEE_MemFill(wide, 0, sizeof(wide));
	TEE_MemFill(scalar, 0, sizeof(scalar));
	if (!res)
		res = publish(key, x, y);
	if (res) {
		TEE_FreeTransientObject(object);
		return res;
	}
	key->object = object;
	return TEE_SUCCESS;
}

/* Coordinates come without their leading zeros. */
static TEE_Result coordinate(TEE_ObjectHandle object, uint32_t attribute, uint8_t out[COORDINATE_BYTES])
{
	uint8_t buffer[COORDINATE_BYTES] = { 0 };
	size_t size = sizeof(buffer);
	TEE_Result res = TEE_GetObjectBufferAttribute(object, attribute, buffer, &size);

	if (res)
		return res;
	if (size > COORDINATE_BYTES)
		return TEE_ERROR_GENERIC;
	memset(out, 0, COORDINATE_BYTES);
	memcpy(out + COORDINATE_BYTES - size, buffer, size);
	return TEE_SUCCESS;
}

static TEE_Result make_realm_key(struct signing_key *key)
{
	const struct suite *suite = key->suite;
	uint8_t x[COORDINATE_BYTES] = { 0 };
	uint8_t y[COORDINATE_BYTES] = { 0 };
	TEE_ObjectHandle object = TEE_HANDLE_NULL;
	TEE_Attribute curve = { 0 };
	TEE_Result res = TEE_AllocateTransientObject(suite->key_type, 256, &object);

	if (res)
		return res;
	TEE_InitValueAttribute(&curve, TEE_ATTR_ECC_CURVE, suite->key_curve, 0);
	res = TEE_GenerateKey(object, 256, &curve, suite->key_curve ? 1 : 0);
	if (!res)
		res = coordinate(object, TEE_ATTR_ECC_PUBLIC_VALUE_X, x);
	if (!res)
		res = coordinate(object, TEE_ATTR_ECC_PUBLIC_VALUE_Y, y);
	if (!res)
		res = publish(key, x, y);
	if (res) {
		TEE_FreeTransientObject(object);
		return res;
	}
	key->object = object;
	return TEE_SUCCESS;
}

/* ``key``, made at its first use. */
static TEE_Result existing(struct signing_key *key, const struct suite *suite,
			   TEE_Result (*make)(struct signing_key *key))
{
	key->suite = suite;
	return key->object == TEE_HANDLE_NULL ? make(key) : TEE_SUCCESS;
}

TEE_Result platform_attestation_key(const struct suite *suite, const struct signing_key **key)
{
	*key = &platform[suite->index];
	return existing(&platform[suite->index], suite, make_platform_key);
}

TEE_Result realm_attestation_key(const struct suite *suite, const struct signing_key **key)
{
	*key = &realm[suite->index];
	return existing(&realm[suite->index], suite, make_realm_key);
}

static void forget(struct signing_key *key)
{
	TEE_FreeTransientObject(key->object);
	TEE_MemFill(key, 0, sizeof(*key));
	key->object = TEE_HANDLE_NULL;
}

void forget_keys(void)
{
	size_t i = 0;

	for (i = 0; i < SUITES; i++) {
		forget(&platform[i]);
		forget(&realm[i]);
	}
}
