"""What can be known about KVM without arm64: the decoding of exits, and errors where it is not to be had."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vambrace.errors import KvmError
from vambrace.kvm import Crashed, Interrupted, MmioRead, MmioWrite, SystemEvent, Vm, abi, decode_exit


def run_with(reason: int, details: bytes = b"") -> bytearray:
    run = bytearray(4096)
    struct.pack_into("<I", run, abi.RUN_EXIT_REASON, reason)
    run[abi.RUN_EXIT : abi.RUN_EXIT + len(details)] = details
    return run


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_decodes_device_accesses(length: int) -> None:
    write = run_with(abi.EXIT_MMIO, struct.pack("<Q8sIB", 0x0A00_0050, b"\x01\x02\x03\x04\x05\x06\x07\x08", length, 1))
    assert decode_exit(write) == MmioWrite(0x0A00_0050, b"\x01\x02\x03\x04\x05\x06\x07\x08"[:length])
    read = run_with(abi.EXIT_MMIO, struct.pack("<Q8sIB", 0x0A00_0000, b"", length, 0))
    assert decode_exit(read) == MmioRead(0x0A00_0000, length)


def test_decodes_the_end() -> None:
    off = run_with(abi.EXIT_SYSTEM_EVENT, struct.pack("<I", abi.SYSTEM_EVENT_SHUTDOWN))
    assert decode_exit(off) == SystemEvent(abi.SYSTEM_EVENT_SHUTDOWN)
    assert decode_exit(run_with(abi.EXIT_INTR)) == Interrupted()


@pytest.mark.parametrize(
    ("run", "detail"),
    [
        (run_with(abi.EXIT_MMIO, struct.pack("<Q8sIB", 0, b"", 64, 0)), "64 bytes"),
        (run_with(abi.EXIT_FAIL_ENTRY, struct.pack("<Q", 0x1B)), "0x1b"),
        (run_with(abi.EXIT_INTERNAL_ERROR, struct.pack("<I", 3)), "internal error 3"),
        (run_with(abi.EXIT_SHUTDOWN), "without PSCI"),
        (run_with(abi.EXIT_ARM_NISV), "cannot be emulated"),
        (run_with(77), "unknown KVM exit 77"),
    ],
)
def test_decodes_crashes(run: bytearray, detail: str) -> None:
    crashed = decode_exit(run)
    assert isinstance(crashed, Crashed)
    assert detail in crashed.detail


def test_register_numbers_are_those_of_the_kernel() -> None:
    # Documentation/virt/kvm/api.rst: 0x6030 0000 0010 <index in 32-bit words of user_pt_regs>
    assert abi.REGISTERS["x0"] == 0x6030_0000_0010_0000
    assert abi.REGISTERS["x30"] == 0x6030_0000_0010_003C
    assert abi.REGISTERS["pc"] == 0x6030_0000_0010_0040
    assert abi.REGISTERS["pstate"] == 0x6030_0000_0010_0042


def test_says_what_is_missing() -> None:
    with Path("/dev/null").open("rb") as device, pytest.raises(KvmError, match="API version"):
        Vm(device.fileno(), 32)
