// SPDX-License-Identifier: Apache-2.0
/* Life cycle and components, for our trusted application and nobody else. */
#include "components.h"
#include "fuse.h"

#include <kernel/pseudo_ta.h>
#include <kernel/ts_manager.h>
#include <kernel/user_ta.h>
#include <string.h>

#define NONE TEE_PARAM_TYPE_NONE

static TEE_Result open_session(uint32_t param_types __unused, TEE_Param params[TEE_NUM_PARAMS] __unused,
			       void **context __unused)
{
	static const TEE_UUID ours = TA_VAMBRACE_UUID;
	struct ts_session *caller = ts_get_calling_session();

	/* No calling session: the normal world itself. */
	if (!caller || !is_user_ta_ctx(caller->ctx) || memcmp(&caller->ctx->uuid, &ours, sizeof(ours)))
		return TEE_ERROR_ACCESS_DENIED;
	/* So there is no evidence of firmware that could still be followed by older. */
	return fuse_burn_versions();
}

static TEE_Result give_lifecycle(uint32_t types, TEE_Param params[TEE_NUM_PARAMS])
{
	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_OUTPUT, NONE, NONE, NONE))
		return TEE_ERROR_BAD_PARAMETERS;
	params[0].value.b = 0;
	return fuse_read_lifecycle(&params[0].value.a);
}

static TEE_Result give_components(uint32_t types, TEE_Param params[TEE_NUM_PARAMS])
{
	struct component components[COMPONENTS_MAX] = { };
	uint8_t signer[FUSE_HASH_BYTES] = { };
	TEE_Result res = TEE_SUCCESS;

	if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_OUTPUT, TEE_PARAM_TYPE_MEMREF_OUTPUT, NONE, NONE) ||
	    params[0].memref.size != sizeof(components) || params[1].memref.size != sizeof(signer))
		return TEE_ERROR_BAD_PARAMETERS;
	res = components_read(components);
	if (!res)
		res = fuse_read_root_key_hash(signer);
	if (res)
		return res;
	memcpy(params[0].memref.buffer, components, sizeof(components));
	memcpy(params[1].memref.buffer, signer, sizeof(signer));
	return TEE_SUCCESS;
}

static TEE_Result invoke(void *context __unused, uint32_t command, uint32_t types, TEE_Param params[TEE_NUM_PARAMS])
{
	switch (command) {
	case PTA_VAMBRACE_LIFECYCLE:
		return give_lifecycle(types, params);
	case PTA_VAMBRACE_ADVANCE:
		if (types != TEE_PARAM_TYPES(TEE_PARAM_TYPE_VALUE_INPUT, NONE, NONE, NONE))
			return TEE_ERROR_BAD_PARAMETERS;
		return fuse_advance(params[0].value.a);
	case PTA_VAMBRACE_COMPONENTS:
		return give_components(types, params);
	default:
		return TEE_ERROR_NOT_SUPPORTED;
	}
}

pseudo_ta_register(.uuid = PTA_VAMBRACE_UUID, .name = "vambrace.pta", .flags = PTA_DEFAULT_FLAGS,
		   .open_session_entry_point = open_session, .invoke_command_entry_point = invoke);
