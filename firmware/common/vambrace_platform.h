/* SPDX-License-Identifier: Apache-2.0 */
/* What the trusted application, OP-TEE's platform code, boot firmware and stub agree on. */
#ifndef VAMBRACE_PLATFORM_H
#define VAMBRACE_PLATFORM_H

/* Which kind of platform this is: claim 2396, the implementation id, is its SHA-256. */
#define IMPLEMENTATION "vambrace-platform-1/qemu-virt"

/* 8b27ba22-915c-4834-b205-619451c0766a */
#define TA_VAMBRACE_UUID \
	{ 0x8b27ba22, 0x915c, 0x4834, { 0xb2, 0x05, 0x61, 0x94, 0x51, 0xc0, 0x76, 0x6a } }

/* 98f16531-bfa3-4075-a5fc-143abb9f14a1 */
#define PTA_VAMBRACE_UUID \
	{ 0x98f16531, 0xbfa3, 0x4075, { 0xa5, 0xfc, 0x14, 0x3a, 0xbb, 0x9f, 0x14, 0xa1 } }

/* [out] value[0].a: the life cycle state. TEE_ERROR_SECURITY if the fuse is blank or damaged. */
#define PTA_VAMBRACE_LIFECYCLE 0
/* [in] value[0].a: the state to go to, for ever; the same one again changes nothing. TEE_ERROR_BAD_STATE: no way leads there. */
#define PTA_VAMBRACE_ADVANCE 1
/* [out] memref[0]: struct component of everything that is not in the boot event log, in the order in which it came.
 * [out] memref[1]: SHA-256 of the key that the fuse says signs firmware. TEE_ERROR_SECURITY: the host was not measured. */
#define PTA_VAMBRACE_COMPONENTS 2

#define COMPONENT_NAME_BYTES 24
#define COMPONENT_DIGEST_BYTES 32
/* The application, and the host's parts. */
#define COMPONENTS_MAX (1 + HOST_PARTS)

struct component {
	char name[COMPONENT_NAME_BYTES]; /* ends with zeros */
	unsigned char digest[COMPONENT_DIGEST_BYTES];
};

/*
 * The stub tells OP-TEE what host it starts, a fast call for each part, in this order, before the host runs:
 * x1 = the part, x2 to x5 = its SHA-256 (little-endian words). After the last one OP-TEE takes no more until reset.
 * Answers x0 = 0, or SMC_MEASURE_REFUSED.
 */
#define SMC_MEASURE_HOST 0xf2000100
#define SMC_MEASURE_REFUSED 1
#define HOST_DEVICE_TREE 0
#define HOST_KERNEL 1
#define HOST_INITRD 2
#define HOST_ROOT 3 /* the root hash of its dm-verity tree, which stands in the device tree's command line */
#define HOST_PARTS 4

/*
 * What boot firmware leaves for OP-TEE in the page of secure SRAM that they share (TF-A's mailboxes are below it): what
 * BL1 measured before there was a log, and the versions of what was started, for the fuse.
 */
#define HANDOVER_BASE 0x0e000800
#define HANDOVER_MAGIC 0x424d4156 /* "VAMB" */
#ifndef __ASSEMBLER__
#include <stdint.h>

struct handover {
	uint32_t magic;
	uint32_t firmware_version;
	uint32_t host_version;
	uint8_t bl2[COMPONENT_DIGEST_BYTES];
};
#endif

/* Where secure flash has BL1: a SoC's mask ROM. All up to the firmware package is measured. */
#define ROM_BASE 0
#define ROM_SIZE 0x40000

#endif
