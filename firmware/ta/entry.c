// SPDX-License-Identifier: Apache-2.0
/* The trusted application's door: sessions, and the check of every parameter before it is used. */
#include "evidence.h"
#include "keys.h"
#include "platform.h"
#include "protocol.h"
#include "sealing.h"

#include <string.h>
#include <tee_internal_api.h>

#define NONE TEE_PARAM_TYPE_NONE

TEE_Result TA_CreateEntryPoint(void)
{
	return TEE_SUCCESS;
}

void TA_DestroyEntryPoint(void)
{
}

TEE_Result TA_OpenSessionEntryPoint(uint32_t types, TEE_Param params[4], void **session)
{
	(void)params;
	(void)session;
	return types == TEE_PARAM_TYPES(NONE, NONE, NONE, NONE) ? TEE_SUCCESS : TEE_ERROR_BAD_PARAMETERS;
}

void TA_CloseSessionEntryPoint(void *session)
{
	(void)session;
}

static TEE_Result give_platform_key(uint32_t types, TEE_Param params[4])
{
	const struct signing_key *key = NULL;
	const struct suite *suite = NULL;
	size_t room = 0;
	TEE_Result res = TEE_SUCCESS;

	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_INPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT, NONE, NONE))
		return TEE_ERROR_BAD_PARAMETERS;
	suite = suite_numbered(params[0].value.a);
	if (!suite || params[0].value.b)
		return TEE_ERROR_BAD_PARAMETERS;
	res = platform_attestation_key(suite, &key);
	if (res)
		return res;
	room = params[1].memref.buffer ? params[1].memref.size : 0;
	params[1].memref.size = key->cose_key_length;
	if (room < key->cose_key_length)
		return TEE_ERROR_SHORT_BUFFER;
	memcpy(params[1].memref.buffer, key->cose_key, key->cose_key_length);
	return TEE_SUCCESS;
}

static TEE_Result give_lifecycle(uint32_t types, TEE_Param params[4])
{
	uint32_t state = 0;
	TEE_Result res = TEE_SUCCESS;

	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_OUTPUT, NONE, NONE, NONE))
		return TEE_ERROR_BAD_PARAMETERS;
	res = platform_lifecycle(&state);
	params[0].value.a = res ? 0 : state;
	params[0].value.b = 0;
	return res;
}

static TEE_Result advance_lifecycle(uint32_t types, TEE_Param params[4])
{
	TEE_Result res = TEE_SUCCESS;

	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_INPUT, NONE, NONE, NONE) || params[0].value.b)
		return TEE_ERROR_BAD_PARAMETERS;
	res = platform_advance(params[0].value.a);
	/* Another state may have another key, or none. */
	if (!res)
		forget_keys();
	return res;
}

static TEE_Result give_random(uint32_t types, TEE_Param params[4])
{
	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_OUTPUT, NONE, NONE, NONE) || !params[0].memref.buffer ||
	    !params[0].memref.size || params[0].memref.size > RANDOM_MAX)
		return TEE_ERROR_BAD_PARAMETERS;
	TEE_GenerateRandom(params[0].memref.buffer, params[0].memref.size);
	return TEE_SUCCESS;
}

static TEE_Result give_evidence(uint32_t types, TEE_Param params[4])
{
	struct realm_request request = { 0 };
	size_t size = 0;
	TEE_Result res = TEE_SUCCESS;

	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT, NONE, NONE) ||
	    !params[0].memref.buffer || params[0].memref.size != sizeof(request))
		return TEE_ERROR_BAD_PARAMETERS;
	/* The normal world can change its memory at any moment: check and use a copy. */
	memcpy(&request, params[0].memref.buffer, sizeof(request));
	size = params[1].memref.buffer ? params[1].memref.size : 0;
	res = compose_evidence(&request, params[1].memref.buffer, &size);
	if (!res || res == TEE_ERROR_SHORT_BUFFER)
		params[1].memref.size = size;
	return res;
}

static TEE_Result give_sealing_key(uint32_t types, TEE_Param params[4])
{
	struct sealing_request request = { 0 };
	uint8_t key[SEALING_KEY_BYTES] = { 0 };
	TEE_Result res = TEE_SUCCESS;

	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_INPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT, NONE, NONE) ||
	    !params[0].memref.buffer || params[0].memref.size != sizeof(request))
		return TEE_ERROR_BAD_PARAMETERS;
	if (!params[1].memref.buffer || params[1].memref.size < sizeof(key)) {
		params[1].memref.size = sizeof(key);
		return TEE_ERROR_SHORT_BUFFER;
	}
	/* As above: a copy. */
	memcpy(&request, params[0].memref.buffer, sizeof(request));
	res = sealing_key(&request, key);
	if (!res) {
		memcpy(params[1].memref.buffer, key, sizeof(key));
		params[1].memref.size = sizeof(key);
	}
	TEE_MemFill(key, 0, sizeof(key));
	return res;
}

TEE_Result TA_InvokeCommandEntryPoint(void *session, uint32_t command, uint32_t types, TEE_Param params[4])
{
	(void)session;
	switch (command) {
	case CMD_PLATFORM_KEY:
		return give_platform_key(types, params);
	case CMD_LIFECYCLE:
		return give_lifecycle(types, params);
	case CMD_ADVANCE:
		return advance_lifecycle(types, params);
	case CMD_RANDOM:
		return give_random(types, params);
	case CMD_EVIDENCE:
		return give_evidence(types, params);
	case CMD_SEALING_KEY:
		return give_sealing_key(types, params);
	default:
		return TEE_ERROR_NOT_SUPPORTED;
	}
}
