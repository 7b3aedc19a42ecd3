/* SPDX-License-Identifier: Apache-2.0 */
#ifndef USER_TA_HEADER_DEFINES_H
#define USER_TA_HEADER_DEFINES_H

#include <vambrace_platform.h>

#define TA_UUID TA_VAMBRACE_UUID
/* One instance for all sessions, alive until reset: it holds the realm attestation key. */
#define TA_FLAGS (TA_FLAG_SINGLE_INSTANCE | TA_FLAG_MULTI_SESSION | TA_FLAG_INSTANCE_KEEP_ALIVE)
#define TA_STACK_SIZE (16 * 1024)
#define TA_DATA_SIZE (128 * 1024)
#define TA_VERSION "1.0"
#define TA_DESCRIPTION "vambrace attestation"

#endif
