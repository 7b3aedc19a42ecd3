/* What the faked OP-TEE will answer to the next question for its event log. */
#ifndef FAKE_TEE_H
#define FAKE_TEE_H

#include <tee_internal_api.h>

struct fake_log {
	const uint8_t *data;
	size_t length;
	size_t claimed;     /* the length that the answer states */
	TEE_Result opening; /* of the session */
	TEE_Result answer;
	bool no_memory;
};

extern struct fake_log fake_log;
/* Sessions and buffers that were not given back. */
extern int fake_open;

#endif
