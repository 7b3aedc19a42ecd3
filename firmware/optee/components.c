// SPDX-License-Identifier: Apache-2.0
#include "components.h"

#include <initcall.h>
#include <kernel/early_ta.h>
#include <kernel/panic.h>
#include <kernel/spinlock.h>
#include <kernel/thread.h>
#include <stdbool.h>
#include <string.h>
#include <tee/entry_fast.h>
#include <tee/tee_cryp_utl.h>
#include <utee_defines.h>

#define APPLICATION 0
#define FIRST_HOST_PART 1

static struct component measured[COMPONENTS_MAX] = {
	[APPLICATION] = { .name = "VAMBRACE_TA" },
	[FIRST_HOST_PART + HOST_DEVICE_TREE] = { .name = "HOST_DEVICE_TREE" },
	[FIRST_HOST_PART + HOST_KERNEL] = { .name = "HOST_KERNEL" },
	[FIRST_HOST_PART + HOST_INITRD] = { .name = "HOST_INITRD" },
	[FIRST_HOST_PART + HOST_ROOT] = { .name = "HOST_ROOT" },
};

static unsigned int host_lock = SPINLOCK_UNLOCK;
static unsigned int host_parts; /* how many are measured */

static TEE_Result measure_application(void)
{
	static const TEE_UUID ours = TA_VAMBRACE_UUID;
	const struct embedded_ts *application = NULL;

	for_each_early_ta(application)
		if (!memcmp(&application->uuid, &ours, sizeof(ours)) &&
		    !tee_hash_createdigest(TEE_ALG_SHA256, application->ts, application->size,
					   measured[APPLICATION].digest, COMPONENT_DIGEST_BYTES))
			return TEE_SUCCESS;
	panic("the trusted application cannot be measured");
}

boot_final(measure_application);

/* The stub's call; whoever runs in the normal world after it comes too late. */
static bool take_host_part(const struct thread_smc_args *args)
{
	const uint64_t words[] = { args->a2, args->a3, args->a4, args->a5 };
	uint32_t exceptions = cpu_spin_lock_xsave(&host_lock);
	bool next = host_parts < HOST_PARTS && args->a1 == host_parts;

	_Static_assert(sizeof(words) == COMPONENT_DIGEST_BYTES, "a digest fills four registers");
	if (next)
		memcpy(measured[FIRST_HOST_PART + host_parts++].digest, words, sizeof(words));
	cpu_spin_unlock_xrestore(&host_lock, exceptions);
	return next;
}

/* OP-TEE's own hook for a platform's fast calls. */
void tee_entry_fast(struct thread_smc_args *args)
{
	if (args->a0 == SMC_MEASURE_HOST)
		args->a0 = take_host_part(args) ? 0 : SMC_MEASURE_REFUSED;
	else
		__tee_entry_fast(args);
}

TEE_Result components_read(struct component components[COMPONENTS_MAX])
{
	uint32_t exceptions = cpu_spin_lock_xsave(&host_lock);
	TEE_Result res = host_parts == HOST_PARTS ? TEE_SUCCESS : TEE_ERROR_SECURITY;

	if (!res)
		memcpy(components, measured, sizeof(measured));
	cpu_spin_unlock_xrestore(&host_lock, exceptions);
	return res;
}
