/* SPDX-License-Identifier: Apache-2.0 */
/* The life cycle, which OP-TEE's platform code keeps in the fuse. */
#ifndef VAMBRACE_LIFECYCLE_H
#define VAMBRACE_LIFECYCLE_H

#include <tee_internal_api.h>

/* LIFECYCLE_NOT_PROVISIONED or LIFECYCLE_SECURED; fails where the fuse is blank or damaged. */
TEE_Result lifecycle(uint32_t *state);
/* Not provisioned becomes secured, for ever. */
TEE_Result secure_lifecycle(void);

#endif
