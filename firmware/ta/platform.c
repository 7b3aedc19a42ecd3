// SPDX-License-Identifier: Apache-2.0
#include "platform.h"

#include "pta.h"

#define NONE TEE_PARAM_TYPE_NONE

static TEE_Result call_platform(uint32_t command, uint32_t types, TEE_Param params[4])
{
	static const TEE_UUID pta = PTA_VAMBRACE_UUID;

	return ask_pta(&pta, command, types, params);
}

TEE_Result platform_lifecycle(uint32_t *state)
{
	TEE_Param params[4] = { 0 };
	TEE_Result res = call_platform(PTA_VAMBRACE_LIFECYCLE,
				       TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_OUTPUT, NONE, NONE, NONE), params);

	*state = params[0].value.a;
	return res;
}

TEE_Result platform_advance(uint32_t state)
{
	TEE_Param params[4] = { 0 };

	params[0].value.a = state;
	return call_platform(PTA_VAMBRACE_ADVANCE, TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_INPUT, NONE, NONE, NONE),
			     params);
}

TEE_Result platform_components(struct component components[COMPONENTS_MAX], uint8_t signer[COMPONENT_DIGEST_BYTES])
{
	TEE_Param params[4] = { 0 };

	params[0].memref.buffer = components;
	params[0].memref.size = COMPONENTS_MAX * sizeof(components[0]);
	params[1].memref.buffer = signer;
	params[1].memref.size = COMPONENT_DIGEST_BYTES;
	return call_platform(PTA_VAMBRACE_COMPONENTS,
			     TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_OUTPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT, NONE, NONE),
			     params);
}
