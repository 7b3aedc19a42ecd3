// SPDX-License-Identifier: Apache-2.0
#include "eventlog.h"

#include "pta.h"

#include <pta_system.h>
#include <string.h>

#define LOG_MAX 4096
#define EV_POST_CODE 1
#define EV_NO_ACTION 3
#define ALGORITHM_SHA256 0x000b
#define SHA1_BYTES 20

struct reader {
	const uint8_t *data;
	size_t left;
	bool bad;
};

static const uint8_t *take(struct reader *in, size_t length)
{
	const uint8_t *at = in->data;

	if (in->bad || length > in->left) {
		in->bad = true;
		return NULL;
	}
	in->data += length;
	in->left -= length;
	return at;
}

static uint32_t number(struct reader *in, size_t width)
{
	const uint8_t *bytes = take(in, width);
	uint32_t value = 0;
	size_t i = 0;

	for (i = 0; bytes && i < width; i++)
		value |= (uint32_t)bytes[i] << (8 * i);
	return value;
}

static TEE_Result fetch(uint8_t *buffer, size_t *size)
{
	static const TEE_UUID system_pta = PTA_SYSTEM_UUID;
	const uint32_t types = TEE_PARAM_TYPES(TEE_PARAM_TYPE_MEMREF_OUTPUT, TEE_PARAM_TYPE_NONE,
					       TEE_PARAM_TYPE_NONE, TEE_PARAM_TYPE_NONE);
	TEE_Param params[4] = { 0 };
	TEE_Result res = TEE_SUCCESS;

	params[0].memref.buffer = buffer;
	params[0].memref.size = *size;
	res = ask_pta(&system_pta, PTA_SYSTEM_GET_TPM_EVENT_LOG, types, params);
	if (res)
		return res;
	/* Without measured boot OP-TEE answers with success and nothing. */
	if (!params[0].memref.size || params[0].memref.size > *size)
		return TEE_ERROR_SECURITY;
	*size = params[0].memref.size;
	return TEE_SUCCESS;
}

/* The first event says which hashes the others carry: SHA-256 and no other. */
static void read_header(struct reader *in)
{
	static const char signature[16] = "Spec ID Event03";
	struct reader event = { 0 };
	const uint8_t *found = NULL;
	uint32_t type = 0;
	size_t size = 0;

	number(in, 4); /* PCR, of no meaning here */
	type = number(in, 4);
	take(in, SHA1_BYTES);
	size = number(in, 4);
	event.data = take(in, size);
	event.left = size;
	event.bad = in->bad;
	found = take(&event, sizeof(signature));
	take(&event, 8); /* platform class, version, width of UINTN */
	if (type != EV_NO_ACTION || !found || memcmp(found, signature, sizeof(signature)) || number(&event, 4) != 1 ||
	    number(&event, 2) != ALGORITHM_SHA256 || number(&event, 2) != HASH_BYTES)
		event.bad = true;
	take(&event, number(&event, 1));
	if (event.bad || event.left)
		in->bad = true;
}

/* A name is printable ASCII, with or without its final zero. */
static bool copy_name(char name[EVENT_NAME_MAX + 1], const uint8_t *text, size_t length)
{
	size_t i = 0;

	if (length && !text[length - 1])
		length--;
	if (!length || length > EVENT_NAME_MAX)
		return false;
	for (i = 0; i < length; i++) {
		if (text[i] <= 0x20 || text[i] > 0x7e)
			return false;
		name[i] = (char)text[i];
	}
	name[length] = 0;
	return true;
}

static void read_event(struct reader *in, struct boot_events *log)
{
	struct boot_event *event = NULL;
	const uint8_t *digest = NULL;
	const uint8_t *text = NULL;
	uint32_t pcr = number(in, 4);
	uint32_t type = number(in, 4);
	size_t size = 0;

	if (number(in, 4) != 1 || number(in, 2) != ALGORITHM_SHA256)
		in->bad = true;
	digest = take(in, HASH_BYTES);
	size = number(in, 4);
	text = take(in, size);
	if (in->bad || type == EV_NO_ACTION)
		return;
	if (pcr || type != EV_POST_CODE || log->count == EVENTS_MAX) {
		in->bad = true;
		return;
	}
	event = &log->events[log->count++];
	memcpy(event->digest, digest, HASH_BYTES);
	if (!copy_name(event->name, text, size))
		in->bad = true;
}

TEE_Result read_boot_events(struct boot_events *log)
{
	uint8_t *buffer = TEE_Malloc(LOG_MAX, 0);
	struct reader in = { 0 };
	size_t size = LOG_MAX;
	TEE_Result res = buffer ? fetch(buffer, &size) : TEE_ERROR_OUT_OF_MEMORY;

	log->count = 0;
	if (!res) {
		in = (struct reader){ .data = buffer, .left = size };
		read_header(&in);
		while (!in.bad && in.left)
			read_event(&in, log);
		if (in.bad || !log->count)
			res = TEE_ERROR_SECURITY;
	}
	TEE_Free(buffer);
	return res;
}
