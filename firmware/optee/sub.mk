incdirs-y += .
srcs-y += entropy.c
srcs-y += fuse.c
srcs-y += pta.c
