"""A PCI device of a few bytes of configuration space and memory, and a machine that remembers what it is told."""

from __future__ import annotations

import struct

from vambrace.pci.function import Hardware, Region
from vambrace.pci.msix import Message

MEMORY_64, PREFETCHABLE, IO = 4, 8, 1


def config_space(
    *, vectors: int = 4, table: int = 0x2000, pending: int = 0x3000, capabilities: tuple[bytes, ...] | None = None
) -> bytes:
    """An NVMe disk's: region 0 with 64-bit address, region 2 of I/O ports, MSI-X, power management, PCI Express, MSI,
    a vendor's own."""
    space = bytearray(4096)
    struct.pack_into("<HHHHI", space, 0, 0x1B36, 0x0010, 0x0007, 0x0010, 0x01080202)
    space[0x0E] = 0x80
    struct.pack_into("<II", space, 0x10, 0xFE00_0000 | MEMORY_64, 0x12)
    struct.pack_into("<I", space, 0x18, 0xC000 | IO)
    struct.pack_into("<HH", space, 0x2C, 0x1AF4, 0x1100)
    struct.pack_into("<I", space, 0x30, 0xFFFF_0001)  # an expansion ROM
    struct.pack_into("<BB", space, 0x3C, 11, 1)
    found = capabilities
    if found is None:
        found = (
            struct.pack("<BBHII", 0x11, 0, vectors - 1 | 0xC000, table, pending),
            struct.pack("<BBHHH", 0x01, 0, 0xFE03, 3, 0),
            struct.pack("<BBHIHH", 0x10, 0, 0x0002, 1 << 28 | 0x8FC2, 0xA810, 0) + b"\xff" * 48,
            struct.pack("<BBHII", 0x05, 0, 0x0081, 0xFEE0_0000, 0),
            struct.pack("<BBBBII", 0x09, 0, 12, 1, 7, 9),
        )
    position, pointer = 0x40, 0x34
    for capability in found:
        space[position : position + len(capability)] = capability
        space[pointer] = position
        pointer = position + 1
        position += -(-len(capability) // 4) * 4
    struct.pack_into("<I", space, 0x100, 0x0001_0001)  # an extended capability
    return bytes(space)


class FakeDevice:
    """Region 0 of 16 KiB, all of it mappable, and ports. ``written`` are writes to its configuration space."""

    def __init__(self, space: bytes | None = None, regions: tuple[Region, ...] | None = None) -> None:
        self.space = space or config_space()
        self.regions = regions or (Region(0x4000, ((0, 0x4000),)), *(Region(0, ()),) * 5)
        self.memory = [bytearray(region.size) for region in self.regions]
        self.written: list[tuple[int, bytes]] = []
        self.interrupts: list[int] = []

    def read_config(self, offset: int, length: int) -> bytes:
        return self.space[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))

    @property
    def command(self) -> int:
        """What was last written to its command register."""
        return int.from_bytes(self.written[-1][1], "little")

    def read(self, region: int, offset: int, length: int) -> bytes:
        return bytes(self.memory[region][offset : offset + length])

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.memory[region][offset : offset + len(data)] = data

    def set_interrupts(self, kind: int, eventfds: list[int]) -> None:
        assert kind in (0x05, 0x11)
        self.interrupts = eventfds


class FakeMachine:
    """``mapped`` by number: (region, offset, size, address); ``routes`` by eventfd."""

    def __init__(self, occupied: tuple[int, ...] = ()) -> None:
        self.mapped: dict[int, tuple[int, int, int, int]] = {}
        self.routes: dict[int, Message | None] = {}
        self.occupied = occupied
        self._next = 0

    def map(self, hardware: Hardware, region: int, offset: int, size: int, address: int) -> int | None:
        if address in self.occupied:
            return None
        self._next += 1
        self.mapped[self._next] = (region, offset, size, address)
        return self._next

    def unmap(self, mapping: int) -> None:
        del self.mapped[mapping]

    def vectors(self, count: int) -> list[int]:
        return list(range(100, 100 + count))

    def route(self, function: int, eventfd: int, message: Message | None) -> None:
        self.routes[eventfd] = message
