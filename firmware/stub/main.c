// SPDX-License-Identifier: Apache-2.0
/*
 * BL33: the last thing that TF-A measures. It carries the digests of kernel, initrd and device tree, so that its own
 * digest stands for the whole host, and starts no other host than that one. It tells OP-TEE each of them, so that the
 * token names them too.
 */
#include "layout.h"
#include "pinned.h"
#include "sha256.h"

#include <vambrace_platform.h>

#define UART_DATA 0x00
#define UART_FLAGS 0x18
#define UART_FULL (1U << 5)

struct pinned {
	const char *name;
	uint64_t address;
	uint64_t length;
	uint8_t digest[32];
};

_Noreturn void halt(void);
uint64_t smc(uint64_t function, uint64_t argument, const uint64_t words[4]);

static void put(const char *text)
{
	volatile uint32_t *data = (volatile uint32_t *)(uintptr_t)(UART_ADDRESS + UART_DATA);
	volatile uint32_t *flags = (volatile uint32_t *)(uintptr_t)(UART_ADDRESS + UART_FLAGS);

	for (; *text; text++) {
		while (*flags & UART_FULL)
			;
		*data = (uint8_t)*text;
	}
}

static void report(unsigned int part, const uint8_t digest[32])
{
	uint64_t words[4];
	unsigned int i;

	for (i = 0; i < 32; i++)
		((uint8_t *)words)[i] = digest[i];
	if (!smc(SMC_MEASURE_HOST, part, words))
		return;
	put("vambrace: OP-TEE does not take the host's measurements; halted\r\n");
	halt();
}

static void check(unsigned int number, const struct pinned *part)
{
	uint8_t digest[32];
	uint8_t difference = 0;
	unsigned int i;

	sha256((const uint8_t *)(uintptr_t)part->address, part->length, digest);
	for (i = 0; i < sizeof(digest); i++)
		difference |= digest[i] ^ part->digest[i];
	if (!difference) {
		report(number, digest);
		return;
	}
	put("vambrace: the host's ");
	put(part->name);
	put(" is not the one that this firmware was built for; halted\r\n");
	halt();
}

void check_host(void)
{
	static const struct pinned kernel = { "kernel", KERNEL_ADDRESS, KERNEL_LENGTH, { KERNEL_DIGEST } };
	static const struct pinned initrd = { "initrd", INITRD_ADDRESS, INITRD_LENGTH, { INITRD_DIGEST } };
	static const struct pinned dtb = { "device tree", DTB_ADDRESS, DTB_LENGTH, { DTB_DIGEST } };

	static const uint8_t root[32] = { ROOT_DIGEST };

	check(HOST_DEVICE_TREE, &dtb);
	check(HOST_KERNEL, &kernel);
	check(HOST_INITRD, &initrd);
	/* dm-verity holds the root to what the device tree's command line names, with every block that is read. */
	report(HOST_ROOT, root);
}
