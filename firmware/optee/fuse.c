// SPDX-License-Identifier: Apache-2.0
/* The fuse of the emulated server, in secure flash bank 0. A real SoC brings its own driver in this place. */
#include "fuse.h"

#include <io.h>
#include <kernel/panic.h>
#include <kernel/spinlock.h>
#include <kernel/tee_common_otp.h>
#include <mm/core_memprot.h>
#include <mm/core_mmu.h>
#include <stdbool.h>
#include <string.h>
#include <string_ext.h>
#include <tee/tee_cryp_utl.h>
#include <utee_defines.h>
#include <vambrace_platform.h>

/* CFI command set 1 (Intel), each command doubled: the bank is 32 bits wide, of two 16-bit devices. */
#define CFI_PROGRAM 0x00400040U
#define CFI_CLEAR_STATUS 0x00500050U
#define CFI_READ_ARRAY 0x00ff00ffU
#define CFI_READY 0x00800080U
#define CFI_FAILED 0x001a001aU
#define CFI_POLLS 1000000U

_Static_assert(FUSE_KEY_BYTES == HW_UNIQUE_KEY_LENGTH, "the fuse's key is OP-TEE's hardware unique key");

register_phys_mem_pgdir(MEM_AREA_IO_SEC, FUSE_BASE, FUSE_SIZE);
register_phys_mem_pgdir(MEM_AREA_IO_SEC, ROUNDDOWN(HANDOVER_BASE, SMALL_PAGE_SIZE), SMALL_PAGE_SIZE);

/* While a word is programmed, reads give the device's status: nobody may read the fuse then. */
static unsigned int fuse_lock = SPINLOCK_UNLOCK;

static vaddr_t fuse_word(size_t offset)
{
	vaddr_t base = (vaddr_t)phys_to_virt(FUSE_BASE, MEM_AREA_IO_SEC, FUSE_SIZE);

	if (!base)
		panic("the fuse is not mapped");
	return base + offset;
}

/* ``length`` bytes at ``from``, whole words both. */
static void read_device_words(vaddr_t from, void *to, size_t length)
{
	uint8_t *out = to;
	size_t i = 0;

	for (i = 0; i < length; i += sizeof(uint32_t)) {
		uint32_t word = io_read32(from + i);

		memcpy(out + i, &word, sizeof(word));
		memzero_explicit(&word, sizeof(word));
	}
}

/* Call with fuse_lock held; wipe what it gives. */
static TEE_Result read_fuse(struct fuse_block *fuse)
{
	read_device_words(fuse_word(0), fuse, sizeof(*fuse));
	if (fuse_good(fuse))
		return TEE_SUCCESS;
	memzero_explicit(fuse, sizeof(*fuse));
	return TEE_ERROR_SECURITY;
}

static TEE_Result locked_read(struct fuse_block *fuse)
{
	uint32_t exceptions = cpu_spin_lock_xsave(&fuse_lock);
	TEE_Result res = read_fuse(fuse);

	cpu_spin_unlock_xrestore(&fuse_lock, exceptions);
	return res;
}

/*
 * Who may debug a machine may find its key. So a machine in debug has another one, from which the first cannot be had:
 * nothing that was sealed or endorsed before is of any use there.
 */
static TEE_Result debug_key(uint8_t key[FUSE_KEY_BYTES])
{
	static const char label[] = "vambrace-debug-key-1";
	uint8_t both[sizeof(label) + FUSE_KEY_BYTES] = { };
	uint8_t digest[TEE_SHA256_HASH_SIZE] = { };
	TEE_Result res = TEE_SUCCESS;

	memcpy(both, label, sizeof(label));
	memcpy(both + sizeof(label), key, FUSE_KEY_BYTES);
	res = tee_hash_createdigest(TEE_ALG_SHA256, both, sizeof(both), digest, sizeof(digest));
	memcpy(key, digest, FUSE_KEY_BYTES);
	memzero_explicit(both, sizeof(both));
	memzero_explicit(digest, sizeof(digest));
	return res;
}

TEE_Result tee_otp_get_hw_unique_key(struct tee_hw_unique_key *hwkey)
{
	struct fuse_block fuse = { };
	TEE_Result res = locked_read(&fuse);

	if (res)
		return res;
	if (fuse_lifecycle(&fuse) == LIFECYCLE_DECOMMISSIONED)
		res = TEE_ERROR_SECURITY;
	else if (fuse_lifecycle(&fuse) == LIFECYCLE_DEBUG)
		res = debug_key(fuse.key);
	if (!res)
		memcpy(hwkey->data, fuse.key, sizeof(hwkey->data));
	memzero_explicit(&fuse, sizeof(fuse));
	return res;
}

/* Burn bits of a word: those that are zero in ``value``. Call with fuse_lock held. */
static TEE_Result program(size_t offset, uint32_t value)
{
	vaddr_t word = fuse_word(offset);
	uint32_t status = 0;
	uint32_t polls = 0;

	io_write32(word, CFI_CLEAR_STATUS);
	io_write32(word, CFI_PROGRAM);
	io_write32(word, value);
	do {
		status = io_read32(word);
	} while ((status & CFI_READY) != CFI_READY && ++polls < CFI_POLLS);
	io_write32(word, CFI_CLEAR_STATUS);
	io_write32(word, CFI_READ_ARRAY);
	if (polls == CFI_POLLS || (status & CFI_FAILED) || io_read32(word) != value)
		return TEE_ERROR_SECURITY;
	return TEE_SUCCESS;
}

/* The key first: a machine that loses its power halfway has a damaged fuse, and starts no more either. */
static TEE_Result burn_key(void)
{
	TEE_Result res = TEE_SUCCESS;
	size_t i = 0;

	for (i = 0; !res && i < FUSE_KEY_BYTES; i += sizeof(uint32_t)) {
		res = program(offsetof(struct fuse_block, key) + i, FUSE_BLOWN);
		if (!res)
			res = program(offsetof(struct fuse_block, key_check) + i, FUSE_BLOWN);
	}
	return res ? res : program(offsetof(struct fuse_block, decommissioned), FUSE_BLOWN);
}

/* Call with fuse_lock held. */
static TEE_Result advance(uint32_t from, uint32_t to)
{
	if (from == to)
		return TEE_SUCCESS;
	if (to == LIFECYCLE_SECURED && from == LIFECYCLE_NOT_PROVISIONED)
		return program(offsetof(struct fuse_block, secured), FUSE_BLOWN);
	if (to == LIFECYCLE_DEBUG && from < LIFECYCLE_DEBUG)
		return program(offsetof(struct fuse_block, debug), FUSE_BLOWN);
	return to == LIFECYCLE_DECOMMISSIONED ? burn_key() : TEE_ERROR_BAD_STATE;
}

TEE_Result fuse_advance(uint32_t state)
{
	uint32_t exceptions = cpu_spin_lock_xsave(&fuse_lock);
	struct fuse_block fuse = { };
	TEE_Result res = read_fuse(&fuse);

	if (!res)
		res = advance(fuse_lifecycle(&fuse), state);
	memzero_explicit(&fuse, sizeof(fuse));
	cpu_spin_unlock_xrestore(&fuse_lock, exceptions);
	return res;
}

TEE_Result fuse_read_lifecycle(uint32_t *state)
{
	struct fuse_block fuse = { };
	TEE_Result res = locked_read(&fuse);

	if (!res)
		*state = fuse_lifecycle(&fuse);
	memzero_explicit(&fuse, sizeof(fuse));
	return res;
}

TEE_Result fuse_read_root_key_hash(uint8_t hash[FUSE_HASH_BYTES])
{
	struct fuse_block fuse = { };
	TEE_Result res = locked_read(&fuse);

	if (!res)
		memcpy(hash, fuse.root_key_hash, FUSE_HASH_BYTES);
	memzero_explicit(&fuse, sizeof(fuse));
	return res;
}

/* Call with fuse_lock held. A counter that is as far, or farther, stays. */
static TEE_Result raise_counter(size_t offset, const uint32_t words[FUSE_COUNTER_WORDS], uint32_t value)
{
	TEE_Result res = TEE_SUCCESS;
	uint32_t burnt = 0;
	unsigned int i = 0;

	if (!fuse_counter(words, &burnt) || value > FUSE_COUNTER_MAX)
		return TEE_ERROR_SECURITY;
	for (i = 0; !res && value > burnt && i < FUSE_COUNTER_WORDS; i++)
		if (words[i] != fuse_counter_word(value, i))
			res = program(offset + i * sizeof(uint32_t), fuse_counter_word(value, i));
	return res;
}

TEE_Result fuse_burn_versions(void)
{
	vaddr_t page = (vaddr_t)phys_to_virt(HANDOVER_BASE, MEM_AREA_IO_SEC, sizeof(struct handover));
	uint32_t exceptions = cpu_spin_lock_xsave(&fuse_lock);
	struct handover handover = { };
	struct fuse_block fuse = { };
	TEE_Result res = page ? read_fuse(&fuse) : TEE_ERROR_SECURITY;

	if (!res) {
		read_device_words(page, &handover, sizeof(handover));
		if (handover.magic != HANDOVER_MAGIC)
			res = TEE_ERROR_SECURITY;
	}
	if (!res)
		res = raise_counter(offsetof(struct fuse_block, firmware_version), fuse.firmware_version,
				    handover.firmware_version);
	if (!res)
		res = raise_counter(offsetof(struct fuse_block, host_version), fuse.host_version,
				    handover.host_version);
	memzero_explicit(&fuse, sizeof(fuse));
	cpu_spin_unlock_xrestore(&fuse_lock, exceptions);
	return res;
}
