// SPDX-License-Identifier: Apache-2.0
/* Evidence in the form of the Arm CCA attestation token, under our own profiles (docs/architecture.md, section 9). */
#include "evidence.h"

#include "cbor.h"
#include "eventlog.h"
#include "keys.h"
#include "platform.h"
#include "request.h"

#include <string.h>

#define PLATFORM_PROFILE "tag:vambrace.dev,2026:platform#1"
#define REALM_PROFILE "tag:vambrace.dev,2026:realm#1"

#define TAG_COSE_SIGN1 18
#define TAG_CMW_COLLECTION 907
#define UEID_RANDOM 0x01

#define CLAIM_CHALLENGE 10
#define CLAIM_UEID 256
#define CLAIM_PROFILE 265
#define CLAIM_LIFECYCLE 2395
#define CLAIM_IMPLEMENTATION_ID 2396
#define CLAIM_COMPONENTS 2399
#define CLAIM_CONFIG 2401
#define CLAIM_HASH 2402
#define COLLECTION_PLATFORM 44234
#define CLAIM_PERSONALIZATION 44235
#define CLAIM_RIM_HASH 44236
#define CLAIM_RAK 44237
#define CLAIM_RIM 44238
#define CLAIM_REMS 44239
#define CLAIM_RAK_HASH 44240
#define COLLECTION_REALM 44241
#define CLAIM_INSTANCE -70001
#define CLAIM_KEY_STORAGE -70002
#define CLAIM_DEBUG -70003
#define CLAIM_INSECURE -70004
#define CLAIM_CACHE_PARTITION -70005
#define CLAIM_CLASS -70006

/* Content format of CoAP: application/eat+cwt. */
#define CONTENT_EAT_CWT 263

#define COMPONENT_TYPE 1
#define COMPONENT_DIGEST 2
#define COMPONENT_SIGNER 5
#define COMPONENT_HASH 6

#define HEADER_ALGORITHM 1
#define HEADER_MAX 16

#define PAYLOAD_MAX 4096
#define SCRATCH_MAX (PAYLOAD_MAX + 64)

/* Too big for the stack, and used by one call at a time: an instance runs one command at once. */
static uint8_t payload_buffer[PAYLOAD_MAX];
static uint8_t scratch[SCRATCH_MAX];
static uint8_t platform_token[SCRATCH_MAX + 128];
static uint8_t realm_token[SCRATCH_MAX + 128];
/* The claims over which platform_token is the platform half; no length: none. */
static uint8_t kept_claims[PAYLOAD_MAX];
static size_t kept_length;
static size_t kept_token_length;
static struct boot_events boot_log;
static struct component beside_log[COMPONENTS_MAX];

/* COSE_Sign1 over ``payload`` (RFC 9052 section 4.2), the unprotected header empty. */
static TEE_Result cose_sign1(const struct signing_key *key, const struct cbor *payload, struct cbor *token)
{
	uint8_t signature[SIGNATURE_BYTES] = { 0 };
	uint8_t header[HEADER_MAX] = { 0 };
	struct cbor protected;
	struct cbor tbs;
	TEE_Result res = TEE_SUCCESS;

	cbor_init(&protected, header, sizeof(header));
	cbor_map(&protected, 1);
	cbor_int(&protected, HEADER_ALGORITHM);
	cbor_int(&protected, key->suite->cose_algorithm);
	cbor_init(&tbs, scratch, sizeof(scratch));
	cbor_array(&tbs, 4);
	cbor_text(&tbs, "Signature1");
	cbor_bytes(&tbs, protected.data, protected.length);
	cbor_bytes(&tbs, "", 0);
	cbor_bytes(&tbs, payload->data, payload->length);
	if (payload->overflow || protected.overflow || tbs.overflow)
		return TEE_ERROR_EXCESS_DATA;
	res = sign(key, tbs.data, tbs.length, signature);
	if (res)
		return res;
	cbor_tag(token, TAG_COSE_SIGN1);
	cbor_array(token, 4);
	cbor_bytes(token, protected.data, protected.length);
	cbor_map(token, 0);
	cbor_bytes(token, payload->data, payload->length);
	cbor_bytes(token, signature, sizeof(signature));
	return token->overflow ? TEE_ERROR_EXCESS_DATA : TEE_SUCCESS;
}

/* As in Arm CCA, a boot has its platform half signed once: what it says is composed each time, and mostly the same. */
static TEE_Result sign_platform(const struct signing_key *pak, const struct cbor *claims, struct cbor *token)
{
	TEE_Result res = TEE_SUCCESS;

	if (!claims->overflow && claims->length == kept_length && !memcmp(claims->data, kept_claims, kept_length)) {
		token->length = kept_token_length;
		return TEE_SUCCESS;
	}
	kept_length = 0;
	res = cose_sign1(pak, claims, token);
	if (res)
		return res;
	memcpy(kept_claims, claims->data, claims->length);
	kept_length = claims->length;
	kept_token_length = token->length;
	return TEE_SUCCESS;
}

static void write_component(struct cbor *claims, const char *name, const uint8_t digest[HASH_BYTES],
			    const uint8_t signer[HASH_BYTES])
{
	cbor_map(claims, 4);
	cbor_int(claims, COMPONENT_TYPE);
	cbor_text(claims, name);
	cbor_int(claims, COMPONENT_DIGEST);
	cbor_bytes(claims, digest, HASH_BYTES);
	cbor_int(claims, COMPONENT_SIGNER);
	cbor_bytes(claims, signer, HASH_BYTES);
	cbor_int(claims, COMPONENT_HASH);
	cbor_text(claims, "sha-256");
}

/* Everything that was measured, in the order of the boot. */
static TEE_Result write_components(struct cbor *claims)
{
	uint8_t signer[HASH_BYTES] = { 0 };
	TEE_Result res = read_boot_events(&boot_log);
	size_t i = 0;

	if (!res)
		res = platform_components(beside_log, signer);
	if (res)
		return res;
	cbor_array(claims, boot_log.count + COMPONENTS_MAX);
	for (i = 0; i < boot_log.count; i++)
		write_component(claims, boot_log.events[i].name, boot_log.events[i].digest, signer);
	for (i = 0; i < COMPONENTS_MAX; i++)
		write_component(claims, beside_log[i].name, beside_log[i].digest, signer);
	return TEE_SUCCESS;
}

static TEE_Result compose_platform(const struct signing_key *pak, const struct signing_key *rak, struct cbor *token)
{
	uint8_t implementation[HASH_BYTES] = { 0 };
	uint8_t ueid[1 + HASH_BYTES] = { UEID_RANDOM };
	uint32_t state = 0;
	struct cbor claims;
	TEE_Result res = platform_lifecycle(&state);

	if (!res)
		res = suite_digest(suite_numbered(REQUEST_SUITE_NIST), NULL, 0, IMPLEMENTATION, strlen(IMPLEMENTATION),
			     implementation);
	if (res)
		return res;
	memcpy(ueid + 1, pak->fingerprint, HASH_BYTES);

	cbor_init(&claims, payload_buffer, sizeof(payload_buffer));
	cbor_map(&claims, 8);
	cbor_int(&claims, CLAIM_CHALLENGE);
	cbor_bytes(&claims, rak->fingerprint, HASH_BYTES);
	cbor_int(&claims, CLAIM_UEID);
	cbor_bytes(&claims, ueid, sizeof(ueid));
	cbor_int(&claims, CLAIM_PROFILE);
	cbor_text(&claims, PLATFORM_PROFILE);
	cbor_int(&claims, CLAIM_LIFECYCLE);
	cbor_int(&claims, state);
	cbor_int(&claims, CLAIM_IMPLEMENTATION_ID);
	cbor_bytes(&claims, implementation, sizeof(implementation));
	cbor_int(&claims, CLAIM_COMPONENTS);
	res = write_components(&claims);
	if (res)
		return res;
	cbor_int(&claims, CLAIM_CONFIG);
	cbor_bytes(&claims, "", 0);
	cbor_int(&claims, CLAIM_HASH);
	cbor_text(&claims, "sha-256");
	return sign_platform(pak, &claims, token);
}

static TEE_Result compose_realm(const struct signing_key *rak, const struct realm_request *request, struct cbor *token)
{
	struct cbor claims;
	size_t i = 0;

	cbor_init(&claims, payload_buffer, sizeof(payload_buffer));
	cbor_map(&claims, 14);
	cbor_int(&claims, CLAIM_CHALLENGE);
	cbor_bytes(&claims, request->challenge, sizeof(request->challenge));
	cbor_int(&claims, CLAIM_PROFILE);
	cbor_text(&claims, REALM_PROFILE);
	cbor_int(&claims, CLAIM_PERSONALIZATION);
	cbor_bytes(&claims, request->personalization, sizeof(request->personalization));
	cbor_int(&claims, CLAIM_RIM_HASH);
	cbor_text(&claims, rak->suite->hash);
	cbor_int(&claims, CLAIM_RAK);
	cbor_bytes(&claims, rak->cose_key, rak->cose_key_length);
	cbor_int(&claims, CLAIM_RIM);
	cbor_bytes(&claims, request->rim, sizeof(request->rim));
	cbor_int(&claims, CLAIM_REMS);
	cbor_array(&claims, 4);
	for (i = 0; i < 4; i++)
		cbor_bytes(&claims, request->rems[i], sizeof(request->rems[i]));
	cbor_int(&claims, CLAIM_RAK_HASH);
	cbor_text(&claims, rak->suite->hash);
	cbor_int(&claims, CLAIM_INSTANCE);
	cbor_bytes(&claims, request->instance, sizeof(request->instance));
	cbor_int(&claims, CLAIM_KEY_STORAGE);
	cbor_text(&claims, "dram");
	cbor_int(&claims, CLAIM_DEBUG);
	cbor_bool(&claims, request->flags & REQUEST_DEBUG);
	/* Only the software stand-in, which has no TrustZone, says true here. */
	cbor_int(&claims, CLAIM_INSECURE);
	cbor_bool(&claims, false);
	cbor_int(&claims, CLAIM_CACHE_PARTITION);
	cbor_text(&claims, partition_text(request->cache_partition));
	cbor_int(&claims, CLAIM_CLASS);
	cbor_text(&claims, class_text(request->domain_class));
	return cose_sign1(rak, &claims, token);
}

/* A record of a conceptual message wrapper (draft-ietf-rats-msg-wrap section 3.1): its type, and the message. */
static void add_record(struct cbor *collection, const struct cbor *token)
{
	cbor_array(collection, 2);
	cbor_int(collection, CONTENT_EAT_CWT);
	cbor_bytes(collection, token->data, token->length);
}

TEE_Result compose_evidence(const struct realm_request *request, void *out, size_t *size)
{
	const struct suite *suite = suite_numbered(request->suite);
	const struct signing_key *pak = NULL;
	const struct signing_key *rak = NULL;
	struct cbor collection;
	struct cbor platform;
	struct cbor realm;
	TEE_Result res = request_valid(request) ? TEE_SUCCESS : TEE_ERROR_BAD_PARAMETERS;

	cbor_init(&platform, platform_token, sizeof(platform_token));
	cbor_init(&realm, realm_token, sizeof(realm_token));
	if (!res)
		res = platform_attestation_key(suite, &pak);
	if (!res)
		res = realm_attestation_key(suite, &rak);
	if (!res)
		res = compose_platform(pak, rak, &platform);
	if (!res)
		res = compose_realm(rak, request, &realm);
	if (res)
		return res;

	/* Tag 3 bytes, map 1, two keys of 3, two records: array 1, content format 3, head 3. */
	if (*size < platform.length + realm.length + 24) {
		*size = platform.length + realm.length + 24;
		return TEE_ERROR_SHORT_BUFFER;
	}
	cbor_init(&collection, out, *size);
	cbor_tag(&collection, TAG_CMW_COLLECTION);
	cbor_map(&collection, 2);
	cbor_int(&collection, COLLECTION_PLATFORM);
	add_record(&collection, &platform);
	cbor_int(&collection, COLLECTION_REALM);
	add_record(&collection, &realm);
	*size = collection.length;
	return collection.overflow ? TEE_ERROR_GENERIC : TEE_SUCCESS;
}
