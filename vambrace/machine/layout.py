"""The guest's physical address space.

::

    0x0800_0000  GICv3 distributor, 64 KiB
    0x0808_0000  GICv3 ITS, 128 KiB; only where there are PCI devices, as all that is PCI
    0x080a_0000  GICv3 redistributors, 128 KiB for each vCPU (16 at most: up to 0x082a_0000)
    0x0a00_0000  virtio-mmio, 4 KiB for each device, in the order of ``device_slots``;
                 device n raises shared peripheral interrupt n
    0x0b00_0000  PCI configuration, 1 MiB: one bus
    0x1000_0000  PCI regions, up to 0x3fff_ffff
    0x4000_0000  RAM: zone 0 (system), then zone 1, 2 … (one for each application), without gaps

    behind       PCI regions with 64-bit addresses: 256 GiB, at the next multiple of that

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
ITS: Final = 0x0808_0000
ITS_SIZE: Final = 0x2_0000
#: Where a device writes to send a message interrupt (GITS_TRANSLATER).
ITS_TRANSLATER: Final = ITS + 0x1_0040
GIC_REDISTRIBUTORS: Final = 0x080A_0000
GIC_REDISTRIBUTOR_SIZE: Final = 0x2_0000
GIC_INTERRUPTS: Final = 64  # 32 private ones, 32 shared

MMIO: Final = 0x0A00_0000
MMIO_SIZE: Final = 0x1000

PCI_CONFIG: Final = 0x0B00_0000
PCI_CONFIG_SIZE: Final = 0x10_0000
PCI_LOW: Final = 0x1000_0000
PCI_LOW_SIZE: Final = 0x3000_0000
PCI_HIGH_SIZE: Final = 256 << 30

RAM: Final = 0x4000_0000

MAX_DEVICES: Final = GIC_INTERRUPTS - 32


class HasName(Protocol):
    @property
    def name(self) -> str: ...


def device_slots(
    disks: Sequence[HasName], networks: Sequence[str] = (), *, agent: bool = True, pci: bool = False
) -> tuple[str, ...]:
    """Names of the devices by their slot; ``agent``: the domain has one, which its owner reaches. With ``pci``, the
    IOMMU for PCI devices is the last."""
    cards = (f"network {name}" for name in networks)
    vsock = ("vsock",) if agent else ()
    iommu = ("iommu",) if pci else ()
    return ("console", *(f"disk {disk.name}" for disk in disks), *vsock, "entropy", "balloon", *cards, *iommu)


def device_address(slot: int) -> int:
    """Guest-physical address of the registers of device ``slot``."""
    return MMIO + slot * MMIO_SIZE


def pci_high(end: int) -> int:
    """Where PCI regions with 64-bit addresses begin, behind memory that ends at ``end``."""
    return align(end, PCI_HIGH_SIZE)


def align(value: int, step: int) -> int:
    """``value`` rounded up to a multiple of ``step``."""
    return -(-value // step) * step
