// SPDX-License-Identifier: Apache-2.0
#include "pta.h"

TEE_Result ask_pta(const TEE_UUID *pta, uint32_t command, uint32_t types, TEE_Param params[4])
{
	TEE_TASessionHandle session = TEE_HANDLE_NULL;
	TEE_Result res = TEE_OpenTASession(pta, TEE_TIMEOUT_INFINITE, 0, NULL, &session, NULL);

	if (res)
		return res;
	res = TEE_InvokeTACommand(session, TEE_TIMEOUT_INFINITE, command, types, params, NULL);
	TEE_CloseTASession(session);
	return res;
}
