// SPDX-License-Identifier: Apache-2.0
/*
 * BL2's event log: BL1, BL2 as BL1 measured it, and everything that BL2 loads. OP-TEE finds the log through the device tree
 * at the start of memory, which nobody but firmware has seen by then.
 */
#include "vambrace_platform.h"

#include <arch_helpers.h>
#include <common/debug.h>
#include <drivers/auth/crypto_mod.h>
#include <drivers/measured_boot/event_log/event_log.h>
#include <drivers/measured_boot/metadata.h>
#include <plat/common/platform.h>
#include <string.h>

#include "../common/qemu_private.h"

static const event_log_metadata_t measured[] = {
	{ BL2_IMAGE_ID, MBOOT_BL2_IMAGE_STRING, PCR_0 },
	{ BL31_IMAGE_ID, MBOOT_BL31_IMAGE_STRING, PCR_0 },
	{ BL32_IMAGE_ID, MBOOT_BL32_IMAGE_STRING, PCR_0 },
	{ BL32_EXTRA1_IMAGE_ID, MBOOT_BL32_EXTRA1_IMAGE_STRING, PCR_0 },
	{ BL32_EXTRA2_IMAGE_ID, MBOOT_BL32_EXTRA2_IMAGE_STRING, PCR_0 },
	{ BL33_IMAGE_ID, MBOOT_BL33_IMAGE_STRING, PCR_0 },
	{ EVLOG_INVALID_ID, NULL, UINT32_MAX },
};

static const struct handover *const handover = (const struct handover *)HANDOVER_BASE;
static uint8_t event_log[PLAT_EVENT_LOG_MAX_SIZE];

/*
 * BL1 has started all of this, so its word is behind ours: on a SoC it is a mask ROM. Here it shares a flash with what is
 * updated, and another one than was published shall be seen.
 */
static void record_rom(void)
{
	static const event_log_metadata_t rom = { EVLOG_INVALID_ID, "BL_1", PCR_0 };
	unsigned char digest[CRYPTO_MD_MAX_SIZE] = { 0 };

	if (event_log_measure(ROM_BASE, ROM_SIZE, digest)) {
		ERROR("vambrace: BL1 cannot be measured\n");
		panic();
	}
	event_log_record(digest, EV_POST_CODE, &rom);
}

void bl2_plat_mboot_init(void)
{
	if (handover->magic != HANDOVER_MAGIC) {
		ERROR("vambrace: BL1 did not measure BL2\n");
		panic();
	}
	event_log_init(event_log, event_log + sizeof(event_log));
	event_log_write_header();
	record_rom();
	event_log_record(handover->bl2, EV_POST_CODE, &measured[0]);
}

void bl2_plat_mboot_finish(void)
{
	size_t size = event_log_get_cur_size(event_log);
	uintptr_t copy = 0;

	if (qemu_set_nt_fw_info((uintptr_t)event_log, size, &copy)) {
		ERROR("vambrace: the device tree has no place for the event log\n");
		panic();
	}
	memcpy((void *)copy, event_log, size);
	flush_dcache_range(copy, size);
}

int plat_mboot_measure_image(unsigned int image_id, image_info_t *image)
{
	int error = event_log_measure_and_record(image->image_base, image->image_size, image_id, measured);

	if (error)
		ERROR("vambrace: image %u cannot be measured (%d)\n", image_id, error);
	return error;
}

int plat_mboot_measure_key(const void *oid, const void *key, size_t length)
{
	(void)oid;
	(void)key;
	(void)length;
	return 0;
}
