global-incdirs-y += .
global-incdirs-y += ../common
cflags-y += -Wextra -Wno-unused-parameter
cppflags-y += -DSIGNER_ID_BYTES=$(VAMBRACE_SIGNER_ID)
srcs-y += entry.c
srcs-y += keys.c
srcs-y += cbor.c
srcs-y += eventlog.c
srcs-y += lifecycle.c
srcs-y += request.c
srcs-y += evidence.c
srcs-y += sealing.c
