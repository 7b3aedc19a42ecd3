// SPDX-License-Identifier: Apache-2.0
/*
 * Trusted boot by the fuse: which key signs firmware, and how old it may be (TF-A's porting guide, "Trusted Board Boot").
 *
 * BL1 and BL2 only read the fuse. A version above the fuse's is left in the handover; OP-TEE burns it when the trusted
 * application first asks for something, so that firmware that does not come so far shuts nobody out.
 */
#include "fuse_block.h"
#include "vambrace_platform.h"

#include <common/debug.h>
#include <common/tbbr/tbbr_img_def.h>
#include <plat/common/platform.h>
#include <string.h>
#include <tools_share/tbbr_oid.h>

/* DigestInfo of a SHA-256 (RFC 8017, section 9.2, note 1); the hash itself comes behind it. */
#define DIGEST_INFO_PREFIX \
	0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20
#define DIGEST_INFO_PREFIX_BYTES 19

static const struct fuse_block *const fuse = (const struct fuse_block *)FUSE_BASE;
static struct handover *const handover = (struct handover *)HANDOVER_BASE;

static bool fuse_allows_boot(void)
{
	if (!fuse_good(fuse)) {
		ERROR("vambrace: the fuse is blank or damaged\n");
		return false;
	}
	if (fuse_lifecycle(fuse) == LIFECYCLE_DECOMMISSIONED) {
		ERROR("vambrace: this machine is decommissioned\n");
		return false;
	}
	return true;
}

int plat_get_rotpk_info(void *cookie, void **key, unsigned int *length, unsigned int *flags)
{
	static uint8_t hash[DIGEST_INFO_PREFIX_BYTES + FUSE_HASH_BYTES] = { DIGEST_INFO_PREFIX };

	(void)cookie;
	if (!fuse_allows_boot())
		return -1;
	memcpy(hash + DIGEST_INFO_PREFIX_BYTES, fuse->root_key_hash, FUSE_HASH_BYTES);
	*key = hash;
	*length = sizeof(hash);
	*flags = ROTPK_IS_HASH;
	return 0;
}

static bool of_firmware(const void *cookie)
{
	return !strcmp(cookie, TRUSTED_FW_NVCOUNTER_OID);
}

int plat_get_nv_ctr(void *cookie, unsigned int *value)
{
	uint32_t burnt = 0;
	/* What this very boot has started counts already: nothing older goes with it. */
	uint32_t started = of_firmware(cookie) ? handover->firmware_version : handover->host_version;

	if (!fuse_counter(of_firmware(cookie) ? fuse->firmware_version : fuse->host_version, &burnt))
		return -1;
	*value = started > burnt ? started : burnt;
	return 0;
}

int plat_set_nv_ctr(void *cookie, unsigned int value)
{
	if (value > FUSE_COUNTER_MAX) {
		ERROR("vambrace: version %u is more than the fuse can hold\n", value);
		return -1;
	}
	if (of_firmware(cookie))
		handover->firmware_version = value;
	else
		handover->host_version = value;
	return 0;
}
