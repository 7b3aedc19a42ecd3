"""The address space of the devices of one IOMMU group: what is not mapped, they cannot reach."""

from __future__ import annotations

import struct

from vambrace.errors import KvmError
from vambrace.vfio import abi

_MOST_INFO = 64 << 10


class Container:
    """An open container with its group in it and its IOMMU set (``TYPE1V2``). It owns ``fd``.

    Raises ``KvmError``, as all methods do.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        #: What may be mapped: (first, last address), rising.
        self.ranges = _ranges(_info(fd))

    def map(self, iova: int, address: int, size: int, *, read: bool, write: bool) -> None:
        """Let the devices read or write this process's memory at ``address``; the kernel pins it."""
        flags = (abi.DMA_READ if read else 0) | (abi.DMA_WRITE if write else 0)
        packed = struct.pack("<IIQQQ", 32, flags, address, iova, size)
        abi.call(self.fd, abi.IOMMU_MAP_DMA, packed, "map memory for a device")

    def unmap(self, iova: int, size: int) -> None:
        """The mappings within a range, each as a whole, end."""
        packed = bytearray(struct.pack("<IIQQ", 24, 0, iova, size))
        abi.call(self.fd, abi.IOMMU_UNMAP_DMA, packed, "unmap memory of a device")
        if struct.unpack_from("<Q", packed, 16)[0] != size:
            raise KvmError("VFIO: a device's memory is not all unmapped")


def _info(fd: int) -> bytes:
    """struct vfio_iommu_type1_info with what is behind it."""
    size = 24
    while True:
        packed = bytearray(size)
        struct.pack_into("<I", packed, 0, size)
        abi.call(fd, abi.IOMMU_GET_INFO, packed, "read what a device can reach")
        (needed,) = struct.unpack_from("<I", packed)
        if needed <= size or needed > _MOST_INFO:
            return bytes(packed)
        size = needed


def _ranges(info: bytes) -> tuple[tuple[int, int], ...]:
    flags, _, offset = struct.unpack_from("<IQI", info, 4)
    if flags & abi.IOMMU_INFO_CAPS:
        while 0 < offset <= len(info) - 16:
            kind, _, following = struct.unpack_from("<HHI", info, offset)
            if kind == abi.IOMMU_INFO_CAP_IOVA_RANGE:
                (count,) = struct.unpack_from("<I", info, offset + 8)
                return tuple(struct.unpack_from("<QQ", info, offset + 16 + 16 * index) for index in range(count))
            if following <= offset:
                break
            offset = following
    raise KvmError("VFIO: the kernel does not say what a device can reach", hint="run Linux 5.4 or newer")
