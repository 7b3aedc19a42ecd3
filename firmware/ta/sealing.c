// SPDX-License-Identifier: Apache-2.0
#include "sealing.h"

#include "eventlog.h"
#include "keys.h"
#include "platform.h"
#include "request.h"

#include <string.h>

/* What the platform token states, too. Hashed as it lies in memory: all that is not set is zero. */
struct platform_state {
	uint64_t lifecycle;
	struct boot_events log;
};

struct derivation {
	char label[32];
	uint8_t platform[HASH_BYTES];
	struct sealing_request request;
};

_Static_assert(sizeof(struct derivation) == 32 + HASH_BYTES + sizeof(struct sealing_request), "it has no padding");

/* Too big for the stack; an instance runs one command at once. */
static struct platform_state state;

static TEE_Result hash_platform(uint8_t digest[HASH_BYTES])
{
	uint32_t found = 0;
	TEE_Result res = platform_lifecycle(&found);

	memset(&state, 0, sizeof(state));
	if (!res)
		res = read_boot_events(&state.log);
	if (res)
		return res;
	state.lifecycle = found;
	return suite_digest(suite_numbered(REQUEST_SUITE_NIST), NULL, 0, &state, sizeof(state), digest);
}

TEE_Result sealing_key(const struct sealing_request *request, uint8_t key[SEALING_KEY_BYTES])
{
	struct derivation info = { .label = "vambrace-sealing-key-1" };
	TEE_Result res = TEE_SUCCESS;

	if (!sealing_valid(request))
		return TEE_ERROR_BAD_PARAMETERS;
	res = hash_platform(info.platform);
	if (res)
		return res;
	info.request = *request;
	return derive_unique_key(&info, sizeof(info), key);
}
