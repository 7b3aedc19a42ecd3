/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fuse: a block of 4 KiB at FUSE_BASE of secure flash bank 0, which only the secure world can address. Boot firmware and
 * OP-TEE read it with the same code. Programming flash clears bits and nothing here erases, so everything in it goes
 * one way: all ones is what nobody has burnt.
 */
#ifndef VAMBRACE_FUSE_BLOCK_H
#define VAMBRACE_FUSE_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define FUSE_BASE 0x03ff0000
#define FUSE_SIZE 0x1000

#define FUSE_KEY_BYTES 16
#define FUSE_HASH_BYTES 32
#define FUSE_COUNTER_WORDS 16
#define FUSE_COUNTER_MAX (32 * FUSE_COUNTER_WORDS)

/* A word that is all ones or all zeros, and nothing else. */
#define FUSE_BLANK 0xffffffffU
#define FUSE_BLOWN 0U

struct fuse_block {
	uint8_t magic[8];                               /* 0x000: "VAMBFUSE" */
	uint8_t key[FUSE_KEY_BYTES];                    /* 0x008: hardware unique key */
	uint8_t key_check[FUSE_KEY_BYTES];              /* 0x018: its complement: a half-written key is noticed */
	uint8_t reserved0[24];                          /* 0x028 */
	uint32_t secured;                               /* 0x040: the factory has ended */
	uint32_t debug;                                 /* 0x044: whoever has the machine may look into it */
	uint32_t decommissioned;                        /* 0x048: its keys are gone */
	uint8_t reserved1[20];                          /* 0x04c */
	uint8_t root_key_hash[FUSE_HASH_BYTES];         /* 0x060: SHA-256 of the key that signs firmware (SPKI, DER) */
	uint8_t reserved2[128];                         /* 0x080 */
	uint32_t firmware_version[FUSE_COUNTER_WORDS];  /* 0x100: the oldest firmware that may start: bits burnt */
	uint32_t host_version[FUSE_COUNTER_WORDS];      /* 0x140: the oldest host (its stub) that may start */
};

_Static_assert(sizeof(struct fuse_block) == 0x180, "the fuse is a layout of hardware");

/* Life cycle states as the token's claim 2395 gives them. */
#define LIFECYCLE_NOT_PROVISIONED 0x1000
#define LIFECYCLE_SECURED 0x3000
#define LIFECYCLE_DEBUG 0x5000
#define LIFECYCLE_DECOMMISSIONED 0x6000

/* False: blank, damaged, or in no known state. A decommissioned fuse is good without a key. */
bool fuse_good(const struct fuse_block *fuse);
/* Of a good fuse. */
uint32_t fuse_lifecycle(const struct fuse_block *fuse);
/* How many bits are burnt. False: not one after the other, from the first word's lowest bit up. */
bool fuse_counter(const uint32_t words[FUSE_COUNTER_WORDS], uint32_t *value);
/* Word ``index`` of a counter that is ``value``, 0 to FUSE_COUNTER_MAX. */
uint32_t fuse_counter_word(uint32_t value, unsigned int index);

#endif
