/* As much of GlobalPlatform's TEE Internal Core API as firmware/tests need; tee.c stands behind it. */
#ifndef FAKE_TEE_INTERNAL_API_H
#define FAKE_TEE_INTERNAL_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t TEE_Result;
typedef struct fake_session *TEE_TASessionHandle;
typedef struct fake_object *TEE_ObjectHandle;

typedef struct {
	uint32_t timeLow;
	uint16_t timeMid;
	uint16_t timeHiAndVersion;
	uint8_t clockSeqAndNode[8];
} TEE_UUID;

typedef union {
	struct {
		void *buffer;
		size_t size;
	} memref;
	struct {
		uint32_t a;
		uint32_t b;
	} value;
} TEE_Param;

#define TEE_HANDLE_NULL NULL
#define TEE_TIMEOUT_INFINITE 0xffffffff

#define TEE_SUCCESS 0x00000000
#define TEE_ERROR_GENERIC 0xffff0000
#define TEE_ERROR_EXCESS_DATA 0xffff0004
#define TEE_ERROR_BAD_PARAMETERS 0xffff0006
#define TEE_ERROR_ITEM_NOT_FOUND 0xffff0008
#define TEE_ERROR_OUT_OF_MEMORY 0xffff000c
#define TEE_ERROR_SECURITY 0xffff000f
#define TEE_ERROR_SHORT_BUFFER 0xffff0010

#define TEE_PARAM_TYPE_NONE 0
#define TEE_PARAM_TYPE_MEMREF_OUTPUT 6
#define TEE_PARAM_TYPES(a, b, c, d) ((a) | (b) << 4 | (c) << 8 | (d) << 12)

void *TEE_Malloc(size_t size, uint32_t hint);
void TEE_Free(void *buffer);
TEE_Result TEE_OpenTASession(const TEE_UUID *destination, uint32_t timeout, uint32_t types, TEE_Param params[4],
			     TEE_TASessionHandle *session, uint32_t *origin);
TEE_Result TEE_InvokeTACommand(TEE_TASessionHandle session, uint32_t timeout, uint32_t command, uint32_t types,
			       TEE_Param params[4], uint32_t *origin);
void TEE_CloseTASession(TEE_TASessionHandle session);

#endif
