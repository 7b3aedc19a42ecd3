/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VAMBRACE_FUSE_H
#define VAMBRACE_FUSE_H

#include <stdint.h>
#include <tee_api_types.h>

/* Both give TEE_ERROR_SECURITY if the fuse is blank, damaged or in no known state. */
TEE_Result fuse_lifecycle(uint32_t *state);
TEE_Result fuse_secure(void);

#endif
