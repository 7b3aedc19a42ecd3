// SPDX-License-Identifier: Apache-2.0
/* The fuse of the emulated server, in secure flash bank 0. A real SoC brings its own driver in this place. */
#include "fuse.h"

#include <arm.h>
#include <initcall.h>
#include <io.h>
#include <kernel/panic.h>
#include <kernel/spinlock.h>
#include <kernel/tee_common_otp.h>
#include <mm/core_memprot.h>
#include <mm/core_mmu.h>
#include <stdbool.h>
#include <string.h>
#include <string_ext.h>
#include <vambrace_platform.h>

#define BLANK 0xffffffffU
#define BLOWN 0U

/* CFI command set 1 (Intel), each command doubled: the bank is 32 bits wide, of two 16-bit devices. */
#define CFI_PROGRAM 0x00400040U
#define CFI_CLEAR_STATUS 0x00500050U
#define CFI_READ_ARRAY 0x00ff00ffU
#define CFI_READY 0x00800080U
#define CFI_FAILED 0x001a001aU
#define CFI_POLLS 1000000U

register_phys_mem_pgdir(MEM_AREA_IO_SEC, FUSE_BASE, FUSE_SIZE);

/* While a word is programmed, reads give the device's status: nobody may read the key then. */
static unsigned int fuse_lock = SPINLOCK_UNLOCK;

static vaddr_t fuse_base(void)
{
	vaddr_t base = (vaddr_t)phys_to_virt(FUSE_BASE, MEM_AREA_IO_SEC, FUSE_SIZE);

	if (!base)
		panic("the fuse is not mapped");
	return base;
}

static void read_words(vaddr_t from, void *to, size_t length)
{
	uint8_t *out = to;
	size_t i = 0;

	for (i = 0; i < length; i += sizeof(uint32_t)) {
		uint32_t word = io_read32(from + i);

		memcpy(out + i, &word, sizeof(word));
		memzero_explicit(&word, sizeof(word));
	}
}

/* Call with fuse_lock held. */
static TEE_Result read_key(uint8_t key[HW_UNIQUE_KEY_LENGTH])
{
	static const uint8_t magic[8] = { 'V', 'A', 'M', 'B', 'F', 'U', 'S', 'E' };
	uint8_t check[HW_UNIQUE_KEY_LENGTH] = { };
	uint8_t found[sizeof(magic)] = { };
	vaddr_t base = fuse_base();
	uint8_t ones = 0xff;
	uint8_t zeros = 0;
	uint8_t bad = 0;
	size_t i = 0;

	read_words(base, found, sizeof(found));
	read_words(base + FUSE_KEY_OFFSET, key, HW_UNIQUE_KEY_LENGTH);
	read_words(base + FUSE_CHECK_OFFSET, check, sizeof(check));
	for (i = 0; i < HW_UNIQUE_KEY_LENGTH; i++) {
		bad |= key[i] ^ (uint8_t)~check[i];
		ones &= key[i];
		zeros |= key[i];
	}
	memzero_explicit(check, sizeof(check));
	if (memcmp(found, magic, sizeof(magic)) || bad || ones == 0xff || !zeros) {
		memzero_explicit(key, HW_UNIQUE_KEY_LENGTH);
		return TEE_ERROR_SECURITY;
	}
	return TEE_SUCCESS;
}

TEE_Result tee_otp_get_hw_unique_key(struct tee_hw_unique_key *hwkey)
{
	uint32_t exceptions = cpu_spin_lock_xsave(&fuse_lock);
	TEE_Result res = read_key(hwkey->data);

	cpu_spin_unlock_xrestore(&fuse_lock, exceptions);
	return res;
}

/* Call with fuse_lock held: a life cycle counts only beside a good key. */
static TEE_Result read_lifecycle(uint32_t *state)
{
	uint8_t key[HW_UNIQUE_KEY_LENGTH] = { };
	TEE_Result res = read_key(key);
	uint32_t word = 0;

	memzero_explicit(key, sizeof(key));
	if (res)
		return res;
	word = io_read32(fuse_base() + FUSE_LIFECYCLE_OFFSET);
	if (word != BLANK && word != BLOWN)
		return TEE_ERROR_SECURITY;
	*state = word == BLOWN ? LIFECYCLE_SECURED : LIFECYCLE_NOT_PROVISIONED;
	return TEE_SUCCESS;
}

/* Call with fuse_lock held. */
static TEE_Result program_lifecycle(void)
{
	vaddr_t word = fuse_base() + FUSE_LIFECYCLE_OFFSET;
	uint32_t status = 0;
	uint32_t polls = 0;

	io_write32(word, CFI_CLEAR_STATUS);
	io_write32(word, CFI_PROGRAM);
	io_write32(word, BLOWN);
	do {
		status = io_read32(word);
	} while ((status & CFI_READY) != CFI_READY && ++polls < CFI_POLLS);
	io_write32(word, CFI_CLEAR_STATUS);
	io_write32(word, CFI_READ_ARRAY);
	if (polls == CFI_POLLS || (status & CFI_FAILED) || io_read32(word) != BLOWN)
		return TEE_ERROR_SECURITY;
	return TEE_SUCCESS;
}

TEE_Result fuse_lifecycle(uint32_t *state)
{
	uint32_t exceptions = cpu_spin_lock_xsave(&fuse_lock);
	TEE_Result res = read_lifecycle(state);

	cpu_spin_unlock_xrestore(&fuse_lock, exceptions);
	return res;
}

TEE_Result fuse_secure(void)
{
	uint32_t exceptions = cpu_spin_lock_xsave(&fuse_lock);
	uint32_t state = 0;
	TEE_Result res = read_lifecycle(&state);

	if (!res && state == LIFECYCLE_NOT_PROVISIONED)
		res = program_lifecycle();
	cpu_spin_unlock_xrestore(&fuse_lock, exceptions);
	return res;
}
