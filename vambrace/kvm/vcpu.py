"""One vCPU: registers, running, and why it stopped."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Mapping
from typing import NamedTuple

from vambrace.errors import KvmError
from vambrace.kvm import abi


class MmioRead(NamedTuple):
    """The guest reads ``length`` (1, 2, 4, 8) bytes; answer with ``Vcpu.answer``."""

    address: int
    length: int


class MmioWrite(NamedTuple):
    address: int
    data: bytes


class SystemEvent(NamedTuple):
    """The guest ended itself through PSCI: ``kind`` is one of ``abi.SYSTEM_EVENT_*``."""

    kind: int


class Interrupted(NamedTuple):
    """A signal or ``Vcpu.stop``."""


class Crashed(NamedTuple):
    """The guest cannot go on; ``detail`` says why, in one line without guest data."""

    detail: str


Exit = MmioRead | MmioWrite | SystemEvent | Interrupted | Crashed

_CRASHES = {
    abi.EXIT_SHUTDOWN: "shutdown without PSCI",
    abi.EXIT_ARM_NISV: "device access by an instruction that cannot be emulated",
}


def decode_exit(run: bytes | bytearray | memoryview | mmap.mmap) -> Exit:
    """What struct kvm_run says about the last exit."""
    (reason,) = struct.unpack_from("<I", run, abi.RUN_EXIT_REASON)
    if reason == abi.EXIT_MMIO:
        address, data, length, is_write = struct.unpack_from("<Q8sIB", run, abi.RUN_EXIT)
        if length not in (1, 2, 4, 8):
            return Crashed(f"device access of {length} bytes")
        return MmioWrite(address, data[:length]) if is_write else MmioRead(address, length)
    if reason == abi.EXIT_SYSTEM_EVENT:
        return SystemEvent(struct.unpack_from("<I", run, abi.RUN_EXIT)[0])
    if reason == abi.EXIT_INTR:
        return Interrupted()
    if reason == abi.EXIT_FAIL_ENTRY:
        return Crashed(f"hardware entry failed ({struct.unpack_from('<Q', run, abi.RUN_EXIT)[0]:#x})")
    if reason == abi.EXIT_INTERNAL_ERROR:
        return Crashed(f"KVM internal error {struct.unpack_from('<I', run, abi.RUN_EXIT)[0]}")
    return Crashed(_CRASHES.get(reason, f"unknown KVM exit {reason}"))


class Vcpu:
    """Made by ``Vm.vcpu``. ``run`` belongs to one thread; ``stop`` may be called from any."""

    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        self._run = mmap.mmap(fd, run_size)

    def close(self) -> None:
        self._run.close()

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """Raises ``KvmError``: unknown name, or the kernel refused."""
        for name, value in registers.items():
            self._set_register(name, value)

    def _set_register(self, name: str, value: int) -> None:
        if name not in abi.REGISTERS:
            raise KvmError(f"KVM: register {name[:20]} is not known")
        cell = array.array("Q", [value])
        try:
            fcntl.ioctl(self._fd, abi.SET_ONE_REG, struct.pack("<QQ", abi.REGISTERS[name], cell.buffer_info()[0]))
        except OSError as error:
            raise KvmError(f"KVM: register {name}: {os.strerror(error.errno or errno.EIO)}") from error

    def run(self) -> Exit:
        """Run until the next exit; other Python threads run meanwhile."""
        try:
            fcntl.ioctl(self._fd, abi.RUN, 0)
        except InterruptedError:
            return Interrupted()
        except BlockingIOError:
            return Interrupted()  # EAGAIN: the vCPU was powered on; run again
        except OSError as error:
            return Crashed(f"KVM_RUN: {os.strerror(error.errno or errno.EIO)}")
        return decode_exit(self._run)

    def answer(self, data: bytes) -> None:
        """The result of the ``MmioRead`` that ``run`` has returned."""
        self._run[abi.MMIO_DATA : abi.MMIO_DATA + len(data)] = data

    def stop(self) -> None:
        """Make the present or next ``run`` return ``Interrupted``, and all later ones.

        The thread inside ``run`` also needs a signal, sent after this call.
        """
        self._run[abi.RUN_IMMEDIATE_EXIT] = 1
