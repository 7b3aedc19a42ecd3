/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys that a Realm seals data with (docs/broker.md). Nothing is stored: the same request gives the same key on this
 * machine, in this life cycle, under the firmware and host that are booted now, and nowhere else.
 */
#ifndef VAMBRACE_SEALING_H
#define VAMBRACE_SEALING_H

#include "protocol.h"

#include <tee_internal_api.h>

TEE_Result sealing_key(const struct sealing_request *request, uint8_t key[SEALING_KEY_BYTES]);

#endif
