/* SPDX-License-Identifier: Apache-2.0 */
/* What OP-TEE itself answers: its pseudo trusted applications. */
#ifndef VAMBRACE_PTA_H
#define VAMBRACE_PTA_H

#include <tee_internal_api.h>

/* One ``command`` to ``pta``, in a session of its own. */
TEE_Result ask_pta(const TEE_UUID *pta, uint32_t command, uint32_t types, TEE_Param params[4]);

#endif
