/* SPDX-License-Identifier: Apache-2.0 */
/* What OP-TEE's platform code knows: the life cycle, which it keeps in the fuse, and components beside the event log. */
#ifndef VAMBRACE_TA_PLATFORM_H
#define VAMBRACE_TA_PLATFORM_H

#include <tee_internal_api.h>
#include <vambrace_platform.h>

/* One of LIFECYCLE_*; fails where the fuse is blank or damaged. */
TEE_Result platform_lifecycle(uint32_t *state);
/* Go to another state, for ever (PTA_VAMBRACE_ADVANCE). */
TEE_Result platform_advance(uint32_t state);
/* What is not in the event log, and the hash of the key that signs firmware; fails where the host was not measured. */
TEE_Result platform_components(struct component components[COMPONENTS_MAX], uint8_t signer[COMPONENT_DIGEST_BYTES]);

#endif
