/* OP-TEE's pseudo trusted application "system", as far as its event log. */
#ifndef FAKE_PTA_SYSTEM_H
#define FAKE_PTA_SYSTEM_H

#define PTA_SYSTEM_UUID { 0x3a2f8978, 0x5dc0, 0x11e8, { 0x9c, 0x2d, 0xfa, 0x7a, 0xe0, 0x1b, 0xbe, 0xbc } }
#define PTA_SYSTEM_GET_TPM_EVENT_LOG 12

#endif
