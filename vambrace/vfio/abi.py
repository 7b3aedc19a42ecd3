"""Numbers of the VFIO interface (linux/vfio.h), as the kernel documents them."""

from __future__ import annotations

import fcntl
import os
from errno import EIO
from typing import Final

from vambrace.errors import KvmError

API_VERSION: Final = 0
TYPE1V2: Final = 3

# ioctls on a container
GET_API_VERSION: Final = 0x3B64
CHECK_EXTENSION: Final = 0x3B65
SET_IOMMU: Final = 0x3B66
IOMMU_GET_INFO: Final = 0x3B70
IOMMU_MAP_DMA: Final = 0x3B71
IOMMU_UNMAP_DMA: Final = 0x3B72

# ioctls on a group
GROUP_GET_STATUS: Final = 0x3B67
GROUP_SET_CONTAINER: Final = 0x3B68
GROUP_GET_DEVICE_FD: Final = 0x3B6A
GROUP_VIABLE: Final = 1 << 0

# ioctls on a device
DEVICE_GET_INFO: Final = 0x3B6B
DEVICE_GET_REGION_INFO: Final = 0x3B6C
DEVICE_GET_IRQ_INFO: Final = 0x3B6D
DEVICE_SET_IRQS: Final = 0x3B6E
DEVICE_RESET: Final = 0x3B6F
DEVICE_GET_HOT_RESET_INFO: Final = 0x3B70
DEVICE_HOT_RESET: Final = 0x3B71

#: What a VMM asks: in its jail it can ask nothing else (vambrace/jail/kinds.py). The rest is the daemon's.
CONTAINER_REQUESTS: Final = (IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA)
DEVICE_REQUESTS: Final = (DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_SET_IRQS)

DEVICE_FLAG_RESET: Final = 1 << 0
DEVICE_FLAG_PCI: Final = 1 << 1

REGION_READ, REGION_WRITE, REGION_MMAP, REGION_CAPS = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REGION_CAP_SPARSE_MMAP: Final = 1
CONFIG_REGION: Final = 7
BARS: Final = 6

#: Indexes of interrupts by the PCI capability that they are of.
INTERRUPTS: Final = {0x05: 1, 0x11: 2}
IRQ_SET_NONE, IRQ_SET_EVENTFD, IRQ_SET_TRIGGER = 1 << 0, 1 << 2, 1 << 5

DMA_READ, DMA_WRITE = 1 << 0, 1 << 1
IOMMU_INFO_CAPS: Final = 1 << 1
IOMMU_INFO_CAP_IOVA_RANGE: Final = 1


def call(fd: int, request: int, argument: int | bytes | bytearray, what: str) -> int:
    """One ioctl; raises ``KvmError`` saying ``what`` was not possible."""
    try:
        if isinstance(argument, bytearray):
            # The kernel's answer is written back into it.
            return int(fcntl.ioctl(fd, request, argument, True))
        answer: int | bytes = fcntl.ioctl(fd, request, argument)
        return answer if isinstance(answer, int) else 0
    except OSError as error:
        raise KvmError(f"VFIO: cannot {what}: {os.strerror(error.errno or EIO)}") from error
