#include "tee.h"

#include <assert.h>
#include <pta_system.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

struct fake_log fake_log;
int fake_open;

static struct fake_session {
	bool open;
} the_session;
static size_t allocated;

void *TEE_Malloc(size_t size, uint32_t hint)
{
	assert(hint == 0);
	if (fake_log.no_memory)
		return NULL;
	allocated = size;
	fake_open++;
	return calloc(1, size);
}

void TEE_Free(void *buffer)
{
	if (!buffer)
		return;
	ASAN_UNPOISON_MEMORY_REGION(buffer, allocated);
	fake_open--;
	free(buffer);
}

TEE_Result TEE_OpenTASession(const TEE_UUID *destination, uint32_t timeout, uint32_t types, TEE_Param params[4],
			     TEE_TASessionHandle *session, uint32_t *origin)
{
	static const TEE_UUID system_pta = PTA_SYSTEM_UUID;

	assert(!memcmp(destination, &system_pta, sizeof system_pta));
	assert(timeout == TEE_TIMEOUT_INFINITE && !types && !params && !origin && !the_session.open);
	if (fake_log.opening)
		return fake_log.opening;
	the_session.open = true;
	fake_open++;
	*session = &the_session;
	return TEE_SUCCESS;
}

TEE_Result TEE_InvokeTACommand(TEE_TASessionHandle session, uint32_t timeout, uint32_t command, uint32_t types,
			       TEE_Param params[4], uint32_t *origin)
{
	uint8_t *buffer = params[0].memref.buffer;
	size_t room = params[0].memref.size;

	assert(session == &the_session && the_session.open && timeout == TEE_TIMEOUT_INFINITE && !origin);
	assert(command == PTA_SYSTEM_GET_TPM_EVENT_LOG);
	assert(types == TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_OUTPUT, TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE,
					TEE_PARAM_TYPE_NONE));
	assert(room == allocated);
	params[0].memref.size = fake_log.claimed;
	if (fake_log.answer)
		return fake_log.answer;
	if (fake_log.length > room)
		return TEE_ERROR_SHORT_BUFFER;
	memcpy(buffer, fake_log.data, fake_log.length);
	/* Whoever reads on behind the log is caught. */
	ASAN_POISON_MEMORY_REGION(buffer + fake_log.length, room - fake_log.length);
	return TEE_SUCCESS;
}

void TEE_CloseTASession(TEE_TASessionHandle session)
{
	assert(session == &the_session && the_session.open);
	the_session.open = false;
	fake_open--;
}
