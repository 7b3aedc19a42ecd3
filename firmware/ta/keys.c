// SPDX-License-Identifier: Apache-2.0
#include "keys.h"

#include "cbor.h"

#include <mbedtls/ecp.h>
#include <pta_system.h>
#include <string.h>

#define COORDINATE_BYTES 32
/* Twice the order's size: reducing 512 bits modulo 256 leaves a bias below 2^-255. */
#define WIDE_BYTES 64
#define HALF_BYTES (WIDE_BYTES / 2)

_Static_assert(HALF_BYTES == HASH_BYTES, "a half is derived at once");

static struct signing_key platform;
static struct signing_key realm;

/* mbedtls's way of asking for random numbers; TEE_GenerateRandom panics rather than fail. */
static int random_bytes(void *context, unsigned char *out, size_t length)
{
	(void)context;
	TEE_GenerateRandom(out, length);
	return 0;
}

TEE_Result sha256(const void *data, size_t length, uint8_t digest[HASH_BYTES])
{
	TEE_OperationHandle operation = TEE_HANDLE_NULL;
	size_t size = HASH_BYTES;
	TEE_Result res = TEE_AllocateOperation(&operation, TEE_ALG_SHA256, TEE_MODE_DIGEST, 0);

	if (res)
		return res;
	res = TEE_DigestDoFinal(operation, data, length, digest, &size);
	TEE_FreeOperation(operation);
	return res;
}

TEE_Result sign(const struct signing_key *key, const uint8_t digest[HASH_BYTES], uint8_t signature[SIGNATURE_BYTES])
{
	TEE_OperationHandle operation = TEE_HANDLE_NULL;
	size_t size = SIGNATURE_BYTES;
	TEE_Result res = TEE_AllocateOperation(&operation, TEE_ALG_ECDSA_P256, TEE_MODE_SIGN, 256);

	if (res)
		return res;
	res = TEE_SetOperationKey(operation, key->object);
	if (!res)
		res = TEE_AsymmetricSignDigest(operation, NULL, 0, digest, HASH_BYTES, signature, &size);
	TEE_FreeOperation(operation);
	return !res && size != SIGNATURE_BYTES ? TEE_ERROR_GENERIC : res;
}

/* Fill in what is public of ``key`` from its coordinates. */
static TEE_Result publish(struct signing_key *key, const uint8_t x[COORDINATE_BYTES], const uint8_t y[COORDINATE_BYTES])
{
	struct cbor out;

	cbor_init(&out, key->cose_key, sizeof(key->cose_key));
	cbor_map(&out, 4);
	cbor_int(&out, 1); /* kty: EC2 */
	cbor_int(&out, 2);
	cbor_int(&out, -1); /* crv: P-256 */
	cbor_int(&out, 1);
	cbor_int(&out, -2);
	cbor_bytes(&out, x, COORDINATE_BYTES);
	cbor_int(&out, -3);
	cbor_bytes(&out, y, COORDINATE_BYTES);
	if (out.overflow || out.length != sizeof(key->cose_key))
		return TEE_ERROR_GENERIC;
	return sha256(key->cose_key, sizeof(key->cose_key), key->fingerprint);
}

TEE_Result derive_unique_key(void *info, size_t length, uint8_t key[HASH_BYTES])
{
	static const TEE_UUID system_pta = PTA_SYSTEM_UUID;
	const uint32_t types = TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT,
					       TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE);
	TEE_TASessionHandle session = TEE_HANDLE_NULL;
	TEE_Param params[4] = { 0 };
	TEE_Result res = TEE_OpenTASession(&system_pta, TEE_TIMEOUT_INFINITE, 0, NULL, &session, NULL);

	if (res)
		return res;
	params[0].memref.buffer = info;
	params[0].memref.size = length;
	params[1].memref.buffer = key;
	params[1].memref.size = HASH_BYTES;
	res = TEE_InvokeTACommand(session, TEE_TIMEOUT_INFINITE, PTA_SYSTEM_DERIVE_TA_UNIQUE_KEY, types, params, NULL);
	TEE_CloseTASession(session);
	return res;
}

/* WIDE_BYTES of key material, in two halves. */
static TEE_Result derive(uint8_t wide[WIDE_BYTES])
{
	static const char label[] = "vambrace-platform-attestation-key-1";
	uint8_t info[sizeof(label)] = { 0 };
	size_t half = 0;
	TEE_Result res = TEE_SUCCESS;

	memcpy(info, label, sizeof(label));
	for (half = 0; !res && half < 2; half++) {
		info[sizeof(label) - 1] = (uint8_t)half;
		res = derive_unique_key(info, sizeof(info), wide + half * HALF_BYTES);
	}
	return res;
}

/* scalar = wide mod (n - 1) + 1, and its public point. */
static int compute_pair(const uint8_t wide[WIDE_BYTES], uint8_t scalar[COORDINATE_BYTES], uint8_t x[COORDINATE_BYTES],
			uint8_t y[COORDINATE_BYTES])
{
	uint8_t encoded[1 + 2 * COORDINATE_BYTES] = { 0 };
	mbedtls_ecp_group group;
	mbedtls_ecp_point point;
	mbedtls_mpi number;
	mbedtls_mpi bound;
	size_t length = 0;
	int bad = 0;

	mbedtls_ecp_group_init(&group);
	mbedtls_ecp_point_init(&point);
	mbedtls_mpi_init(&number);
	mbedtls_mpi_init(&bound);
	bad = mbedtls_ecp_group_load(&group, MBEDTLS_ECP_DP_SECP256R1);
	if (!bad)
		bad = mbedtls_mpi_sub_int(&bound, &group.N, 1);
	if (!bad)
		bad = mbedtls_mpi_read_binary(&number, wide, WIDE_BYTES);
	if (!bad)
		bad = mbedtls_mpi_mod_mpi(&number, &number, &bound);
	if (!bad)
		bad = mbedtls_mpi_add_int(&number, &number, 1);
	if (!bad)
		bad = mbedtls_ecp_check_privkey(&group, &number);
	if (!bad)
		bad = mbedtls_ecp_mul(&group, &point, &number, &group.G, random_bytes, NULL);
	if (!bad)
		bad = mbedtls_mpi_write_binary(&number, scalar, COORDINATE_BYTES);
	if (!bad)
		bad = mbedtls_ecp_point_write_binary(&group, &point, MBEDTLS_ECP_PF_UNCOMPRESSED, &length, encoded,
						     sizeof(encoded));
	if (!bad && length != sizeof(encoded))
		bad = MBEDTLS_ERR_ECP_BAD_INPUT_DATA;
	if (!bad) {
		memcpy(x, encoded + 1, COORDINATE_BYTES);
		memcpy(y, encoded + 1 + COORDINATE_BYTES, COORDINATE_BYTES);
	}
	mbedtls_mpi_free(&bound);
	mbedtls_mpi_free(&number);
	mbedtls_ecp_point_free(&point);
	mbedtls_ecp_group_free(&group);
	return bad;
}

static TEE_Result make_platform_key(struct signing_key *key)
{
	uint8_t wide[WIDE_BYTES] = { 0 };
	uint8_t scalar[COORDINATE_BYTES] = { 0 };
	uint8_t x[COORDINATE_BYTES] = { 0 };
	uint8_t y[COORDINATE_BYTES] = { 0 };
	TEE_ObjectHandle object = TEE_HANDLE_NULL;
	TEE_Attribute attributes[4] = { 0 };
	TEE_Result res = derive(wide);

	if (!res && compute_pair(wide, scalar, x, y))
		res = TEE_ERROR_GENERIC;
	TEE_InitRefAttribute(&attributes[0], TEE_ATTR_ECC_PRIVATE_VALUE, scalar, sizeof(scalar));
	TEE_InitRefAttribute(&attributes[1], TEE_ATTR_ECC_PUBLIC_VALUE_X, x, sizeof(x));
	TEE_InitRefAttribute(&attributes[2], TEE_ATTR_ECC_PUBLIC_VALUE_Y, y, sizeof(y));
	TEE_InitValueAttribute(&attributes[3], TEE_ATTR_ECC_CURVE, TEE_ECC_CURVE_NIST_P256, 0);
	if (!res)
		res = TEE_AllocateTransientObject(TEE_TYPE_ECDSA_KEYPAIR, 256, &object);
	if (!res)
		res = TEE_PopulateTransientObject(object, attributes, 4);
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
	uint8_t x[COORDINATE_BYTES] = { 0 };
	uint8_t y[COORDINATE_BYTES] = { 0 };
	TEE_ObjectHandle object = TEE_HANDLE_NULL;
	TEE_Attribute curve = { 0 };
	TEE_Result res = TEE_AllocateTransientObject(TEE_TYPE_ECDSA_KEYPAIR, 256, &object);

	if (res)
		return res;
	TEE_InitValueAttribute(&curve, TEE_ATTR_ECC_CURVE, TEE_ECC_CURVE_NIST_P256, 0);
	res = TEE_GenerateKey(object, 256, &curve, 1);
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

TEE_Result platform_attestation_key(const struct signing_key **key)
{
	TEE_Result res = platform.object == TEE_HANDLE_NULL ? make_platform_key(&platform) : TEE_SUCCESS;

	*key = &platform;
	return res;
}

TEE_Result realm_attestation_key(const struct signing_key **key)
{
	TEE_Result res = realm.object == TEE_HANDLE_NULL ? make_realm_key(&realm) : TEE_SUCCESS;

	*key = &realm;
	return res;
}

static void forget(struct signing_key *key)
{
	TEE_FreeTransientObject(key->object);
	TEE_MemFill(key, 0, sizeof(*key));
	key->object = TEE_HANDLE_NULL;
}

void forget_keys(void)
{
	forget(&platform);
	forget(&realm);
}
