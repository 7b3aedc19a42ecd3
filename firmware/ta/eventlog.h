/* SPDX-License-Identifier: Apache-2.0 */
/* The boot event log (TCG PC Client Platform Firmware Profile section 9), as TF-A's BL2 wrote it. */
#ifndef VAMBRACE_EVENTLOG_H
#define VAMBRACE_EVENTLOG_H

#include "keys.h"

#define EVENTS_MAX 16
#define EVENT_NAME_MAX 63

struct boot_event {
	char name[EVENT_NAME_MAX + 1];
	uint8_t digest[HASH_BYTES];
};

struct boot_events {
	size_t count;
	struct boot_event events[EVENTS_MAX];
};

/* Fails where there is no log (no measured boot), where it measures nothing, or where it is not understood. */
TEE_Result read_boot_events(struct boot_events *log);

#endif
