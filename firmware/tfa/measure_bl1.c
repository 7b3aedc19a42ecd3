// SPDX-License-Identifier: Apache-2.0
/* BL1 measures what it starts, BL2, before there is an event log: the digest waits in the handover. */
#include "vambrace_platform.h"

#include <common/debug.h>
#include <drivers/auth/crypto_mod.h>
#include <plat/common/platform.h>
#include <string.h>

static struct handover *const handover = (struct handover *)HANDOVER_BASE;

/* What an earlier boot left in memory must not count. */
void bl1_plat_mboot_init(void)
{
	memset(handover, 0, sizeof(*handover));
}

void bl1_plat_mboot_finish(void)
{
	handover->magic = HANDOVER_MAGIC;
}

int plat_mboot_measure_image(unsigned int image_id, image_info_t *image)
{
	unsigned char digest[CRYPTO_MD_MAX_SIZE] = { 0 };
	int error = 0;

	if (image_id != BL2_IMAGE_ID)
		return 0;
	error = crypto_mod_calc_hash(CRYPTO_MD_SHA256, (void *)image->image_base, image->image_size, digest);
	if (error) {
		ERROR("vambrace: BL2 cannot be measured (%d)\n", error);
		return error;
	}
	memcpy(handover->bl2, digest, sizeof(handover->bl2));
	return 0;
}

int plat_mboot_measure_key(const void *oid, const void *key, size_t length)
{
	(void)oid;
	(void)key;
	(void)length;
	return 0;
}
