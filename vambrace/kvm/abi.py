"""Numbers of the KVM interface on arm64 (linux/kvm.h, arch/arm64 asm/kvm.h), as the kernel documents them."""

from __future__ import annotations

from typing import Final

API_VERSION: Final = 12

# ioctls on /dev/kvm
GET_API_VERSION: Final = 0xAE00
CREATE_VM: Final = 0xAE01
CHECK_EXTENSION: Final = 0xAE03
GET_VCPU_MMAP_SIZE: Final = 0xAE04

# ioctls on a VM
CREATE_VCPU: Final = 0xAE41
SET_USER_MEMORY_REGION: Final = 0x4020AE46
SET_GSI_ROUTING: Final = 0x4008AE6A
IRQFD: Final = 0x4020AE76
IOEVENTFD: Final = 0x4040AE79
ARM_PREFERRED_TARGET: Final = 0x8020AEAF
CREATE_DEVICE: Final = 0xC00CAEE0

# ioctls on a device
SET_DEVICE_ATTR: Final = 0x4018AEE1

# ioctls on a vCPU
RUN: Final = 0xAE80
SET_ONE_REG: Final = 0x4010AEAC
ARM_VCPU_INIT: Final = 0x4020AEAE

#: All of these: a VMM in its jail can make no others (vambrace/jail/kinds.py).
REQUESTS: Final = (
    *(GET_API_VERSION, CREATE_VM, CHECK_EXTENSION, GET_VCPU_MMAP_SIZE),
    *(CREATE_VCPU, SET_USER_MEMORY_REGION, SET_GSI_ROUTING, IRQFD, IOEVENTFD, ARM_PREFERRED_TARGET, CREATE_DEVICE),
    *(SET_DEVICE_ATTR, RUN, SET_ONE_REG, ARM_VCPU_INIT),
)

# capabilities
CAP_IRQ_ROUTING: Final = 25
CAP_IRQFD: Final = 32
CAP_IOEVENTFD: Final = 36
CAP_MAX_VCPUS: Final = 66
CAP_ONE_REG: Final = 70
CAP_ARM_PSCI_0_2: Final = 102
CAP_IMMEDIATE_EXIT: Final = 136
CAP_ARM_VM_IPA_SIZE: Final = 165

# struct kvm_vcpu_init, features: bit numbers
VCPU_POWER_OFF: Final = 0
VCPU_PSCI_0_2: Final = 2

# struct kvm_ioeventfd, flags
IOEVENTFD_DATAMATCH: Final = 1 << 0

# struct kvm_irqfd, flags
IRQFD_DEASSIGN: Final = 1 << 0

# struct kvm_irq_routing_entry
ROUTE_IRQCHIP: Final = 1
ROUTE_MSI: Final = 2
MSI_VALID_DEVID: Final = 1 << 0

# the interrupt controller as a KVM device (virt/kvm/devices/arm-vgic-v3.rst)
DEV_TYPE_ARM_VGIC_V3: Final = 7
VGIC_GRP_ADDR: Final = 0
VGIC_GRP_NR_IRQS: Final = 3
VGIC_GRP_CTRL: Final = 4
VGIC_CTRL_INIT: Final = 0
VGIC_V3_ADDR_TYPE_DIST: Final = 2
VGIC_V3_ADDR_TYPE_REDIST: Final = 3

# its translator of message interrupts (virt/kvm/devices/arm-vgic-its.rst)
DEV_TYPE_ARM_VGIC_ITS: Final = 8
VGIC_ITS_ADDR_TYPE: Final = 4

# core registers: KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | index in 32-bit words
_CORE: Final = 0x6030_0000_0010_0000
REGISTERS: Final[dict[str, int]] = {f"x{n}": _CORE | 2 * n for n in range(31)} | {
    "sp": _CORE | 0x3E,
    "pc": _CORE | 0x40,
    "pstate": _CORE | 0x42,
}

# struct kvm_run: offsets in bytes
RUN_IMMEDIATE_EXIT: Final = 1
RUN_EXIT_REASON: Final = 8
RUN_EXIT: Final = 0x20  # the union of details
MMIO_DATA: Final = RUN_EXIT + 8

EXIT_INTR: Final = 10
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTERNAL_ERROR: Final = 17
EXIT_SYSTEM_EVENT: Final = 24
EXIT_ARM_NISV: Final = 28

SYSTEM_EVENT_SHUTDOWN: Final = 1
SYSTEM_EVENT_RESET: Final = 2
SYSTEM_EVENT_CRASH: Final = 3
