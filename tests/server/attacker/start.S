/* Header of an arm64 Image (Linux, Documentation/arch/arm64/booting.rst), and the way into C: EL1, MMU off. */
	.section .text.start, "ax"
	.global _start
_start:
	b	begin
	.word	0
	.quad	0		/* text offset */
	.quad	0x200000	/* size in memory */
	.quad	0xa
	.quad	0, 0, 0
	.ascii	"ARM\x64"
	.word	0
begin:
	adrp	x1, bss_start
	add	x1, x1, :lo12:bss_start
	adrp	x2, bss_end
	add	x2, x2, :lo12:bss_end
1:	cmp	x1, x2
	b.hs	2f
	stp	xzr, xzr, [x1], #16
	b	1b
2:	mov	x1, #0x40000000
	add	x1, x1, #0x200000
	mov	sp, x1
	bl	main
3:	wfi
	b	3b
