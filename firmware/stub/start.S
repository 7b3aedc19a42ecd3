/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

/* Entered by TF-A at EL2: MMU and data cache off, interrupts masked. */
	.section .text.start, "ax"
	.global _start
_start:
	msr	daifset, #0xf
	/* The SHA-256 instructions use the vector registers: do not trap them. */
	mov	x9, #0x33ff
	msr	cptr_el2, x9
	isb
	adrp	x9, stack_top
	add	x9, x9, :lo12:stack_top
	mov	sp, x9
	bl	check_host
	/* Only a host whose every digest was right comes here. x0 = device tree (Linux Documentation/arch/arm64/booting.rst). */
	ldr	x9, =KERNEL_ADDRESS
	ldr	x0, =DTB_ADDRESS
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	ic	iallu
	dsb	sy
	isb
	br	x9

	/* uint64_t smc(uint64_t function, uint64_t argument, const uint64_t words[4]) */
	.global smc
smc:
	ldp	x4, x5, [x2, #16]
	ldp	x2, x3, [x2]
	mov	x6, xzr
	mov	x7, xzr
	smc	#0
	ret

	.global halt
halt:
	wfi
	b	halt

	.section .stack, "aw", %nobits
	.balign	16
	.space	0x4000
stack_top:
