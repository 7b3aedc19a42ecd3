"""The guest's physical address space.

::

    0x0800_0000  GICv3 distributor, 64 KiB
    0x080a_0000  GICv3 redistributors, 128 KiB for each vCPU (16 at most: up to 0x082a_0000)
    0x0a00_0000  virtio-mmio, 4 KiB for each device, in the order of ``device_slots``;
                 device n raises shared peripheral interrupt n
    0x4000_0000  RAM: zone 0 (system), then zone 1, 2 … (one for each application), without gaps

    zone 0:      kernel Image (at text_offset, through the end of its image_size, which covers .bss)
                 initrd       (next page)
                 device tree  (next 2 MiB)
                 free
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

PAGE: Final = 4096
BLOCK: Final = 2 << 20  # the kernel maps Image and device tree with blocks of this size

GIC_DISTRIBUTOR: Final = 0x0800_0000
GIC_DISTRIBUTOR_SIZE: Final = 0x1_0000
GIC_REDISTRIBUTORS: Final = 0x080A_0000
GIC_REDISTRIBUTOR_SIZE: Final = 0x2_0000
GIC_INTERRUPTS: Final = 64  # 32 private ones, 32 shared

MMIO: Final = 0x0A00_0000
MMIO_SIZE: Final = 0x1000

RAM: Final = 0x4000_0000

MAX_DEVICES: Final = GIC_INTERRUPTS - 32


class HasName(Protocol):
    @property
    def name(self) -> str: ...


def device_slots(disks: Sequence[HasName], networks: Sequence[str] = (), *, agent: bool = True) -> tuple[str, ...]:
    """Names of the devices by their slot; ``agent``: the domain has one, which its owner reaches."""
    cards = (f"network {name}" for name in networks)
    vsock = ("vsock",) if agent else ()
    return ("console", *(f"disk {disk.name}" for disk in disks), *vsock, "entropy", "balloon", *cards)


def device_address(slot: int) -> int:
    """Guest-physical address of the registers of device ``slot``."""
    return MMIO + slot * MMIO_SIZE


def align(value: int, step: int) -> int:
    """``value`` rounded up to a multiple of ``step``."""
    return -(-value // step) * step
