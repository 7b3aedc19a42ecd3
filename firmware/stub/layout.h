/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the emulated server's host is loaded. vambrace/emulator/firmware.py reads the three addresses from here.
 *
 *   0x40000000  1 MiB   device tree that TF-A and OP-TEE work on (QEMU's, changed by them; Linux never sees it)
 *   0x40100000  4 KiB   normal-world copy of the boot event log
 *   0x41000000  110 MiB kernel Image (and its BSS)
 *   0x47e00000  2 MiB   the pinned device tree
 *   0x48000000  384 MiB initrd
 *   0x60000000  64 KiB  this stub (TF-A's NS_IMAGE_OFFSET), its stack behind it
 */
#ifndef VAMBRACE_LAYOUT_H
#define VAMBRACE_LAYOUT_H

#define KERNEL_ADDRESS 0x41000000
#define DTB_ADDRESS 0x47e00000
#define INITRD_ADDRESS 0x48000000
#define STUB_ADDRESS 0x60000000
#define UART_ADDRESS 0x09000000

#endif
