incdirs-y += .
srcs-y += entropy.c
srcs-y += fuse_block.c
srcs-y += fuse.c
srcs-y += components.c
srcs-y += pta.c
