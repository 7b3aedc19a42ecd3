/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the trusted application and OP-TEE's platform code agree on.
 *
 * Fuse block: 4 KiB at FUSE_BASE of secure flash bank 0, which only the secure world can address.
 *
 *   0x00   8 bytes   "VAMBFUSE"
 *   0x08  16 bytes   hardware unique key
 *   0x18  16 bytes   its complement, so that a damaged or half-written fuse is noticed
 *   0x28  24 bytes   all ones
 *   0x40   4 bytes   life cycle: all ones = not provisioned, all zeros = secured
 *
 * The life cycle word goes one way: programming flash clears bits, and nothing here erases.
 */
#ifndef VAMBRACE_PLATFORM_H
#define VAMBRACE_PLATFORM_H

/* Which kind of platform this is: claim 2396, the implementation id, is its SHA-256. */
#define IMPLEMENTATION "vambrace-platform-1/qemu-virt"

#define FUSE_BASE 0x03ff0000
#define FUSE_SIZE 0x1000
#define FUSE_KEY_OFFSET 0x08
#define FUSE_CHECK_OFFSET 0x18
#define FUSE_LIFECYCLE_OFFSET 0x40

/* Life cycle states as the token's claim 2395 gives them. */
#define LIFECYCLE_NOT_PROVISIONED 0x1000
#define LIFECYCLE_SECURED 0x3000

/* 8b27ba22-915c-4834-b205-619451c0766a */
#define TA_VAMBRACE_UUID \
	{ 0x8b27ba22, 0x915c, 0x4834, { 0xb2, 0x05, 0x61, 0x94, 0x51, 0xc0, 0x76, 0x6a } }

/* 98f16531-bfa3-4075-a5fc-143abb9f14a1 */
#define PTA_VAMBRACE_UUID \
	{ 0x98f16531, 0xbfa3, 0x4075, { 0xa5, 0xfc, 0x14, 0x3a, 0xbb, 0x9f, 0x14, 0xa1 } }

/* [out] value[0].a: the life cycle state. TEE_ERROR_SECURITY if the fuse is blank or damaged. */
#define PTA_VAMBRACE_LIFECYCLE 0
/* Blow the fuse: not provisioned becomes secured, for ever. Secured stays so. */
#define PTA_VAMBRACE_SECURE 1

#endif
