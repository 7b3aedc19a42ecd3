/*
 * A kernel module that reads one word of physical memory, as an attacker who is root would load it: built without the
 * kernel's headers, so what it needs of them is declared here. -DPROBE_ADDRESS=..., -DPROBE_NAME="..."
 */
#define PAGE 4096UL
/* include/linux/io.h: write-combining. */
#define MEMREMAP_WC 4UL

extern void *memremap(unsigned long address, unsigned long size, unsigned long flags);
extern int _printk(const char *format, ...);

int init_module(void)
{
	const volatile unsigned int *page = memremap(PROBE_ADDRESS & ~(PAGE - 1), PAGE, MEMREMAP_WC);

	if (!page)
		return -12;
	_printk("\0013" "vambrace probe: about to read %lx\n", PROBE_ADDRESS);
	_printk("\0013" "vambrace probe: read %08x\n", page[(PROBE_ADDRESS & (PAGE - 1)) / sizeof(*page)]);
	return 0;
}

/* What the kernel's own build adds to a module (scripts/mod/modpost.c, arch/arm64/include/asm/module.lds.h). */
__asm__(".section .modinfo, \"a\"\n\t.asciz \"license=GPL\"\n\t.asciz \"name=" PROBE_NAME "\"\n"
	".section .plt, \"ax\"\n\t.byte 0\n"
	".section .init.plt, \"a\"\n\t.byte 0\n"
	".section .text.ftrace_trampoline, \"ax\"\n\t.byte 0\n"
	".section .init.text.ftrace_trampoline, \"a\"\n\t.byte 0\n"
	/* struct module: its name is behind its state and its list's links. */
	".section .gnu.linkonce.this_module, \"aw\"\n\t.balign 64\n"
	"1:\t.zero 24\n\t.asciz \"" PROBE_NAME "\"\n"
	"\t.org 1b + " MODULE_INIT "\n\t.quad init_module\n"
	"\t.org 1b + " MODULE_SIZE "\n");
