/* SPDX-License-Identifier: Apache-2.0 */
/* Components that the boot event log does not name: what the log's own entries contain or start. */
#ifndef VAMBRACE_COMPONENTS_H
#define VAMBRACE_COMPONENTS_H

#include <stddef.h>
#include <tee_api_types.h>
#include <vambrace_platform.h>

/* All of them, COMPONENTS_MAX. TEE_ERROR_SECURITY: the stub has not measured the whole host. */
TEE_Result components_read(struct component components[COMPONENTS_MAX]);

#endif
