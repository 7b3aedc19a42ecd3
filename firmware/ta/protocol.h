/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trusted application's commands. vambrace/trustzone/claims.py and session.py mirror this file.
 *
 * Every command refuses parameters of another number, type or size with TEE_ERROR_BAD_PARAMETERS. An output buffer
 * that is too small gives TEE_ERROR_SHORT_BUFFER and the size that is needed.
 */
#ifndef VAMBRACE_PROTOCOL_H
#define VAMBRACE_PROTOCOL_H

#include <stdint.h>

/* [in] value.a: REQUEST_SUITE_…; [out] memref: COSE_Key of that suite's platform attestation key */
#define CMD_PLATFORM_KEY 0
/* [out] value.a: life cycle state; value.b: 0 */
#define CMD_LIFECYCLE 1
/* [in] value.a: the life cycle state to go to, for ever; value.b: 0. TEE_ERROR_BAD_STATE: no way leads there. */
#define CMD_ADVANCE 2
/* [out] memref of 1 to RANDOM_MAX bytes, all of it filled */
#define CMD_RANDOM 3
/* [in] memref: struct realm_request; [out] memref: CMW collection */
#define CMD_EVIDENCE 4
/* [in] memref: struct sealing_request; [out] memref: SEALING_KEY_BYTES */
#define CMD_SEALING_KEY 5

#define RANDOM_MAX 4096
#define SEALING_KEY_BYTES 32

#define REQUEST_VERSION 1
#define REQUEST_DEBUG (1U << 0)
/* What the Realm was measured with, and what hashes and signs its evidence. */
#define REQUEST_SUITE_NIST 1
#define REQUEST_SUITE_SM 2
#define REQUEST_KEY_IN_DRAM 1
/* How the last-level cache is divided: what the monitor says, which is measured. */
#define REQUEST_PARTITION_NONE 0
#define REQUEST_PARTITION_WAYS 1
#define REQUEST_PARTITION_COLOURS_UNCONFIRMED 2
#define REQUEST_PARTITION_COLOURS_CONFIRMED 3
/* The class of the domain; others are not attested. */
#define REQUEST_CLASS_REALM 1
#define REQUEST_CLASS_SECURE 2

/* Little-endian, 320 bytes, no padding; reserved bytes are zero. */
struct realm_request {
	uint32_t version;        /* 0: REQUEST_VERSION */
	uint32_t flags;          /* 4: REQUEST_DEBUG or 0 */
	uint8_t suite;           /* 8 */
	uint8_t key_storage;     /* 9 */
	uint8_t cache_partition; /* 10 */
	uint8_t domain_class;    /* 11 */
	uint8_t reserved[4];     /* 12 */
	uint8_t instance[16];    /* 16 */
	uint8_t personalization[64]; /* 32 */
	uint8_t challenge[64];   /* 96 */
	uint8_t rim[32];         /* 160 */
	uint8_t rems[4][32];     /* 192 */
};

_Static_assert(sizeof(struct realm_request) == 320, "the request is a wire format");

#define SEALING_VERSION 1
/* Who gets the same key again: the same measurement, or what this owner calls a version of this image. */
#define SEAL_TO_MEASUREMENT 1
#define SEAL_TO_OWNER 2

/* Little-endian, 160 bytes, no padding; reserved bytes are zero, and so is what the policy does not look at. */
struct sealing_request {
	uint32_t version;        /* 0: SEALING_VERSION */
	uint32_t flags;          /* 4: REQUEST_DEBUG or 0 */
	uint8_t policy;          /* 8 */
	uint8_t suite;           /* 9: of the measurement; to the owner: 0 */
	uint8_t domain_class;    /* 10 */
	uint8_t reserved[5];     /* 11 */
	uint8_t personalization[64]; /* 16 */
	uint8_t rim[32];         /* 80: to the owner: zeros */
	uint8_t name[32];        /* 112: of the image, then zeros; to a measurement: zeros */
	uint32_t image_version;  /* 144: to a measurement: 0 */
	uint8_t reserved_too[12]; /* 148 */
};

_Static_assert(sizeof(struct sealing_request) == 160, "the request is a wire format");

#endif
