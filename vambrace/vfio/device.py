"""One PCI device, open through VFIO."""

from __future__ import annotations

import os
import struct

from vambrace.errors import KvmError
from vambrace.pci.function import Region
from vambrace.vfio import abi


class PciDevice:
    """Owns ``fd``. Raises ``KvmError``, as all methods do: no PCI device, the kernel refuses."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info = bytearray(struct.pack("<IIIIII", 24, 0, 0, 0, 0, 0))
        abi.call(fd, abi.DEVICE_GET_INFO, info, "look at a device")
        _, flags = struct.unpack_from("<II", info)
        if not flags & abi.DEVICE_FLAG_PCI:
            raise KvmError("VFIO: this is no PCI device")
        #: Whether the kernel can reset it by itself, without others.
        self.resettable = bool(flags & abi.DEVICE_FLAG_RESET)
        found = [self._region(index) for index in range(abi.BARS)]
        self.regions = tuple(region for region, _ in found)
        #: Where in ``fd`` each region begins.
        self.offsets = tuple(offset for _, offset in found)
        config, self._config = self._region(abi.CONFIG_REGION)
        if config.size < 256:
            raise KvmError("VFIO: a PCI device without configuration space")

    def _region(self, index: int) -> tuple[Region, int]:
        size = 32
        while True:
            packed = bytearray(size)
            struct.pack_into("<III", packed, 0, size, 0, index)
            abi.call(self.fd, abi.DEVICE_GET_REGION_INFO, packed, f"look at region {index} of a device")
            needed, flags, _, capabilities, length, offset = struct.unpack_from("<IIIIQQ", packed)
            if needed <= size:
                break
            size = needed
        if not flags & abi.REGION_MMAP:
            return Region(length, ()), offset
        areas = _sparse(packed, capabilities) if flags & abi.REGION_CAPS else None
        return Region(length, ((0, length),) if areas is None else areas), offset

    def read_config(self, offset: int, length: int) -> bytes:
        return self._read(self._config + offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self._write(self._config + offset, data)

    def read(self, region: int, offset: int, length: int) -> bytes:
        return self._read(self.offsets[region] + offset, length)

    def write(self, region: int, offset: int, data: bytes) -> None:
        self._write(self.offsets[region] + offset, data)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset).ljust(length, b"\xff")
        except OSError as error:
            raise KvmError(f"VFIO: a device cannot be read: {error.strerror}") from error

    def _write(self, offset: int, data: bytes) -> None:
        try:
            os.pwrite(self.fd, data, offset)
        except OSError as error:
            raise KvmError(f"VFIO: a device cannot be written: {error.strerror}") from error

    def set_interrupts(self, kind: int, eventfds: list[int]) -> None:
        """Interrupts of this kind (MSI or MSI-X, by its capability) signal these, the first the first; none: off."""
        flags = abi.IRQ_SET_TRIGGER | (abi.IRQ_SET_EVENTFD if eventfds else abi.IRQ_SET_NONE)
        header = struct.pack("<IIIII", 20 + 4 * len(eventfds), flags, abi.INTERRUPTS[kind], 0, len(eventfds))
        packed = bytearray(header + struct.pack(f"<{len(eventfds)}i", *eventfds))
        abi.call(self.fd, abi.DEVICE_SET_IRQS, packed, "set a device's interrupts")


def _sparse(packed: bytes | bytearray, offset: int) -> tuple[tuple[int, int], ...] | None:
    """The parts that can be mapped, where the kernel names some."""
    seen = 0
    while 0 < offset <= len(packed) - 16 and seen < 16:
        kind, _, following = struct.unpack_from("<HHI", packed, offset)
        if kind == abi.REGION_CAP_SPARSE_MMAP:
            (count,) = struct.unpack_from("<I", packed, offset + 8)
            areas = (struct.unpack_from("<QQ", packed, offset + 16 + 16 * index) for index in range(count))
            return tuple((start, size) for start, size in areas if size)
        offset = following
        seen += 1
    return None
