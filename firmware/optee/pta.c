// SPDX-License-Identifier: Apache-2.0
/* The life cycle, for our trusted application and nobody else. */
#include "fuse.h"

#include <kernel/pseudo_ta.h>
#include <kernel/ts_manager.h>
#include <kernel/user_ta.h>
#include <string.h>
#include <vambrace_platform.h>

static TEE_Result open_session(uint32_t param_types __unused, TEE_Param params[TEE_NUM_PARAMS] __unused,
			       void **context __unused)
{
	static const TEE_UUID ours = TA_VAMBRACE_UUID;
	struct ts_session *caller = ts_get_calling_session();

	/* No calling session: the normal world itself. */
	if (!caller || !is_user_ta_ctx(caller->ctx) || memcmp(&caller->ctx->uuid, &ours, sizeof(ours)))
		return TEE_ERROR_ACCESS_DENIED;
	return TEE_SUCCESS;
}

static TEE_Result invoke(void *context __unused, uint32_t command, uint32_t types, TEE_Param params[TEE_NUM_PARAMS])
{
	const uint32_t nothing = TEE_PARAM_TYPES(TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE,
						 TEE_PARAM_TYPE_NONE);
	const uint32_t value = TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_OUTPUT, TEE_PARAM_TYPE_NONE,
					       TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE);

	switch (command) {
	case PTA_VAMBRACE_LIFECYCLE:
		if (types != value)
			return TEE_ERROR_BAD_PARAMETERS;
		params[0].value.b = 0;
		return fuse_lifecycle(&params[0].value.a);
	case PTA_VAMBRACE_SECURE:
		return types == nothing ? fuse_secure() : TEE_ERROR_BAD_PARAMETERS;
	default:
		return TEE_ERROR_NOT_SUPPORTED;
	}
}

pseudo_ta_register(.uuid = PTA_VAMBRACE_UUID, .name = "vambrace.pta", .flags = PTA_DEFAULT_FLAGS,
		   .open_session_entry_point = open_session, .invoke_command_entry_point = invoke);
