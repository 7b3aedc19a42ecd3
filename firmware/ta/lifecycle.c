// SPDX-License-Identifier: Apache-2.0
#include "lifecycle.h"

#include <vambrace_platform.h>

static TEE_Result call_platform(uint32_t command, uint32_t types, TEE_Param params[4])
{
	static const TEE_UUID pta = PTA_VAMBRACE_UUID;
	TEE_TASessionHandle session = TEE_HANDLE_NULL;
	TEE_Result res = TEE_OpenTASession(&pta, TEE_TIMEOUT_INFINITE, 0, NULL, &session, NULL);

	if (res)
		return res;
	res = TEE_InvokeTACommand(session, TEE_TIMEOUT_INFINITE, command, types, params, NULL);
	TEE_CloseTASession(session);
	return res;
}

TEE_Result lifecycle(uint32_t *state)
{
	TEE_Param params[4] = { 0 };
	TEE_Result res = call_platform(PTA_VAMBRACE_LIFECYCLE,
				       TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_OUTPUT, TEE_PARAM_TYPE_NONE,
						       TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE),
				       params);

	*state = params[0].value.a;
	return res;
}

TEE_Result secure_lifecycle(void)
{
	TEE_Param params[4] = { 0 };

	return call_platform(PTA_VAMBRACE_SECURE,
			     TEE_PARAM_TYPES(TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE,
					     TEE_PARAM_TYPE_NONE),
			     params);
}
