/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VAMBRACE_FUSE_H
#define VAMBRACE_FUSE_H

#include "fuse_block.h"

#include <tee_api_types.h>

/* Both give TEE_ERROR_SECURITY if the fuse is blank, damaged or in no known state. */
TEE_Result fuse_read_lifecycle(uint32_t *state);
TEE_Result fuse_read_root_key_hash(uint8_t hash[FUSE_HASH_BYTES]);
/*
 * Go to ``state``, for ever: secured from not provisioned, debug from either of these, decommissioned from anywhere, which
 * burns the key. Staying where it is succeeds; TEE_ERROR_BAD_STATE where no way leads.
 */
TEE_Result fuse_advance(uint32_t state);
/*
 * What was started at this boot is the oldest that starts from now on; again it changes nothing. Not while OP-TEE starts:
 * until the host runs, other processors wait in BL1's code, which is in the flash that is programmed.
 */
TEE_Result fuse_burn_versions(void);

#endif
