# SPDX-License-Identifier: Apache-2.0
# Our platform code in the places of QEMU's: included at the end of its platform.mk (vambrace/emulator/firmware.py).
VAMBRACE := plat/qemu/vambrace
REPLACED := plat/qemu/common/qemu_trusted_boot.c plat/qemu/common/qemu_rotpk.S \
	    plat/qemu/qemu/qemu_bl1_measured_boot.c plat/qemu/qemu/qemu_measured_boot.c

PLAT_INCLUDES += -I$(VAMBRACE)
BL1_SOURCES := $(filter-out $(REPLACED),$(BL1_SOURCES)) \
	       $(VAMBRACE)/fuse_block.c $(VAMBRACE)/trusted_boot.c $(VAMBRACE)/measure_bl1.c
BL2_SOURCES := $(filter-out $(REPLACED),$(BL2_SOURCES)) \
	       $(VAMBRACE)/fuse_block.c $(VAMBRACE)/trusted_boot.c $(VAMBRACE)/measure_bl2.c
