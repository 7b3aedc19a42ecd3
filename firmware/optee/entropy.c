// SPDX-License-Identifier: Apache-2.0
/*
 * Entropy from the processor's generator (FEAT_RNG, Arm ARM K12: RNDR).
 *
 * OP-TEE's own generator on this platform is a software one seeded from the time. A machine without RNDR, or
 * whose RNDR stops giving numbers, must not go on with predictable keys: it stops.
 */
#include <kernel/boot.h>
#include <kernel/panic.h>
#include <rng_support.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <string_ext.h>
#include <tee/tee_cryp_utl.h>

#define ISAR0_RNDR_SHIFT 60
#define RETRIES 1000

static bool rndr_present(void)
{
	uint64_t isar0 = 0;

	asm volatile("mrs %0, id_aa64isar0_el1" : "=r"(isar0));
	return (isar0 >> ISAR0_RNDR_SHIFT) != 0;
}

static uint64_t rndr(void)
{
	unsigned int tries = 0;
	uint64_t value = 0;
	uint32_t valid = 0;

	if (!rndr_present())
		panic("this processor has no random number generator");
	for (tries = 0; tries < RETRIES; tries++) {
		/* s3_3_c2_c4_0 is RNDR; it sets Z when it has no number to give. */
		asm volatile("mrs %0, s3_3_c2_c4_0\n\tcset %w1, ne" : "=r"(value), "=r"(valid) : : "cc", "memory");
		if (valid)
			return value;
		asm volatile("yield");
	}
	panic("the random number generator gives nothing");
}

TEE_Result hw_get_random_bytes(void *buf, size_t len)
{
	uint8_t *out = buf;
	uint64_t value = 0;

	while (len) {
		size_t n = len < sizeof(value) ? len : sizeof(value);

		value = rndr();
		memcpy(out, &value, n);
		out += n;
		len -= n;
	}
	memzero_explicit(&value, sizeof(value));
	return TEE_SUCCESS;
}

/* Nothing to seed. Two equal numbers in a row mean a generator that is stuck: better found now than in a key. */
void plat_rng_init(void)
{
	if (rndr() == rndr())
		panic("the random number generator repeats itself");
}

/* Runs before the MMU is on, which a system register does not mind. */
unsigned long plat_get_aslr_seed(void)
{
	return rndr();
}
