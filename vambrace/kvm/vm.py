"""One virtual machine: memory, interrupt controller, eventfds. Kernel documentation: virt/kvm/api.rst."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from vambrace.errors import KvmError
from vambrace.kvm import abi
from vambrace.kvm.vcpu import Vcpu

_REQUIRED = {
    "PSCI 0.2": abi.CAP_ARM_PSCI_0_2,
    "immediate exit": abi.CAP_IMMEDIATE_EXIT,
    "irqfd": abi.CAP_IRQFD,
    "ioeventfd": abi.CAP_IOEVENTFD,
    "one-reg": abi.CAP_ONE_REG,
}


def call(fd: int, request: int, argument: int | bytes | bytearray, what: str) -> int:
    """One ioctl; raises ``KvmError`` saying ``what`` was not possible."""
    try:
        # With a bytearray the kernel's answer is written back into it.
        if isinstance(argument, bytearray):
            fcntl.ioctl(fd, request, argument, True)
            return 0
        answer: int | bytes = fcntl.ioctl(fd, request, argument)
        return answer if isinstance(answer, int) else 0
    except OSError as error:
        raise KvmError(f"KVM: cannot {what}: {os.strerror(error.errno or errno.EIO)}") from error


class Vm:
    """A VM of ``address_bits`` guest-physical address bits. A context manager; ``close`` frees everything.

    ``kvm`` is an open /dev/kvm, and needed no longer than to make the VM. Raises ``KvmError``: it is something else, no
    arm64 KVM, a capability is missing.
    """

    def __init__(self, kvm: int, address_bits: int) -> None:
        self._stack = ExitStack()
        try:
            self._open(kvm, address_bits)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, kvm: int, address_bits: int) -> None:
        version = call(kvm, abi.GET_API_VERSION, 0, "read the API version")
        if version != abi.API_VERSION:
            raise KvmError(f"KVM: API version {version} is not known")
        for name, capability in _REQUIRED.items():
            if call(kvm, abi.CHECK_EXTENSION, capability, f"ask for {name}") <= 0:
                raise KvmError(f"KVM: {name} is missing", hint="run Linux 6.8 or newer on an arm64 host")
        most = call(kvm, abi.CHECK_EXTENSION, abi.CAP_ARM_VM_IPA_SIZE, "ask for the address size")
        if address_bits > (most or 40):
            raise KvmError(f"KVM: this machine has {most or 40} guest address bits, {address_bits} needed")
        # The smallest address space that fits (32 is the least) saves levels of stage-2 translation.
        kind = max(address_bits, 32) if most else 0
        self.max_vcpus = call(kvm, abi.CHECK_EXTENSION, abi.CAP_MAX_VCPUS, "ask for the number of vCPUs")
        self._run_size = call(kvm, abi.GET_VCPU_MMAP_SIZE, 0, "read the size of kvm_run")
        self._fd = call(kvm, abi.CREATE_VM, kind, "create a VM")
        self._stack.callback(os.close, self._fd)

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees vCPUs and VM. All vCPU threads must have left ``Vcpu.run``."""
        self._stack.close()

    def map(self, slot: int, guest_address: int, host_address: int, size: int) -> None:
        """Give the guest ``size`` bytes of this process's memory. Raises ``KvmError``."""
        region = struct.pack("<IIQQQ", slot, 0, guest_address, size, host_address)
        call(self._fd, abi.SET_USER_MEMORY_REGION, region, "map guest memory")

    def vcpu(self, index: int, *, powered_on: bool) -> Vcpu:
        """Create and initialize a vCPU; one not powered on waits for PSCI CPU_ON. Raises ``KvmError``."""
        fd = call(self._fd, abi.CREATE_VCPU, index, f"create vCPU {index}")
        self._stack.callback(os.close, fd)
        target = bytearray(32)
        call(self._fd, abi.ARM_PREFERRED_TARGET, target, "read the preferred CPU type")
        features = 1 << abi.VCPU_PSCI_0_2 | (0 if powered_on else 1 << abi.VCPU_POWER_OFF)
        struct.pack_into("<I", target, 4, features)
        call(fd, abi.ARM_VCPU_INIT, bytes(target), f"initialize vCPU {index}")
        vcpu = Vcpu(fd, self._run_size)
        self._stack.callback(vcpu.close)
        return vcpu

    def interrupt_controller(self, distributor: int, redistributors: int, interrupts: int) -> None:
        """A GICv3 for the vCPUs that exist, at these guest addresses, with ``interrupts`` lines in all
        (a multiple of 32 from 64 on). Raises ``KvmError``."""
        fd = self._device(abi.DEV_TYPE_ARM_VGIC_V3, "GICv3")
        for group, attribute, value in (
            (abi.VGIC_GRP_ADDR, abi.VGIC_V3_ADDR_TYPE_DIST, struct.pack("<Q", distributor)),
            (abi.VGIC_GRP_ADDR, abi.VGIC_V3_ADDR_TYPE_REDIST, struct.pack("<Q", redistributors)),
            (abi.VGIC_GRP_NR_IRQS, 0, struct.pack("<I", interrupts)),
            (abi.VGIC_GRP_CTRL, abi.VGIC_CTRL_INIT, b""),
        ):
            self._set_attribute(fd, group, attribute, value)

    def message_interrupts(self, address: int) -> None:
        """A translation service (ITS) at ``address`` for the interrupt controller. Raises ``KvmError``."""
        if call(self._fd, abi.CHECK_EXTENSION, abi.CAP_IRQ_ROUTING, "ask for IRQ routing") <= 0:
            raise KvmError("KVM: message interrupts cannot be routed", hint="run Linux 6.8 or newer")
        fd = self._device(abi.DEV_TYPE_ARM_VGIC_ITS, "GICv3 ITS")
        self._set_attribute(fd, abi.VGIC_GRP_ADDR, abi.VGIC_ITS_ADDR_TYPE, struct.pack("<Q", address))
        self._set_attribute(fd, abi.VGIC_GRP_CTRL, abi.VGIC_CTRL_INIT, b"")

    def _device(self, kind: int, name: str) -> int:
        request = bytearray(struct.pack("<III", kind, 0, 0))
        call(self._fd, abi.CREATE_DEVICE, request, f"create a {name}")
        fd: int = struct.unpack_from("<I", request, 4)[0]
        self._stack.callback(os.close, fd)
        return fd

    def _set_attribute(self, fd: int, group: int, attribute: int, value: bytes) -> None:
        cell = array.array("B", value or b"\0")
        address = cell.buffer_info()[0] if value else 0
        packed = struct.pack("<IIQQ", 0, group, attribute, address)
        call(fd, abi.SET_DEVICE_ATTR, packed, "configure the GICv3")

    def interrupt_on(self, eventfd: int, line: int) -> None:
        """Each write to ``eventfd`` raises peripheral interrupt ``line`` (edge). Raises ``KvmError``."""
        call(self._fd, abi.IRQFD, struct.pack("<IIII16x", eventfd, line, 0, 0), "connect an interrupt")

    def interrupt_off(self, eventfd: int, line: int) -> None:
        """Writes to ``eventfd`` stay there until it is connected again. Raises ``KvmError``."""
        packed = struct.pack("<IIII16x", eventfd, line, abi.IRQFD_DEASSIGN, 0)
        call(self._fd, abi.IRQFD, packed, "disconnect an interrupt")

    def route(self, lines: int, messages: Mapping[int, tuple[int, int, int]]) -> None:
        """What interrupts are: the first ``lines`` are peripheral ones, and each of ``messages`` is a write of
        (address, data) by the device with this id. All other message interrupts are nothing. Raises ``KvmError``."""
        entries = [struct.pack("<IIIIII24x", line, abi.ROUTE_IRQCHIP, 0, 0, 0, line) for line in range(lines)]
        for line, (address, data, device) in messages.items():
            low, high = address & 0xFFFF_FFFF, address >> 32
            entries.append(
                struct.pack("<IIIIIIII16x", line, abi.ROUTE_MSI, abi.MSI_VALID_DEVID, 0, low, high, data, device)
            )
        packed = bytearray(struct.pack("<II", len(entries), 0) + b"".join(entries))  # as bytes it could be too long
        call(self._fd, abi.SET_GSI_ROUTING, packed, "route message interrupts")

    def notify_on(self, eventfd: int, guest_address: int, value: int) -> None:
        """A guest's 32-bit write of ``value`` to ``guest_address`` signals ``eventfd``, without an exit."""
        packed = struct.pack("<QQIiI36x", value, guest_address, 4, eventfd, abi.IOEVENTFD_DATAMATCH)
        call(self._fd, abi.IOEVENTFD, packed, "connect a notification")
