/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VAMBRACE_EVIDENCE_H
#define VAMBRACE_EVIDENCE_H

#include "protocol.h"

#include <tee_internal_api.h>

/* Compose both tokens and sign them. On TEE_ERROR_SHORT_BUFFER ``size`` is what is needed. */
TEE_Result compose_evidence(const struct realm_request *request, void *out, size_t *size);

#endif
