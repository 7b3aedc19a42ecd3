"""A device's configuration space as its guest sees it (PCI Local Bus 3.0, chapter 6; PCI Express Base 4.0, chapter 7).

It is composed once from the device's own and then stands by itself: no access of the guest reaches the device's. The
guest sees one function without interrupt pin, expansion ROM, I/O ports and extended capabilities, and of the
capabilities those of ``KEPT``, MSI only where there is no MSI-X. What it may write has its effect here: base addresses,
memory and bus master enable, message interrupts, and registers that only remember (power state, payload sizes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from vambrace.errors import ConfigError
from vambrace.pci.msix import Message

SIZE: Final = 256  # what is beyond, up to 4096 bytes, reads as zeros: no extended capability
COMMAND, STATUS, HEADER_TYPE, BARS, CAPABILITIES = 0x04, 0x06, 0x0E, 0x10, 0x34
MEMORY, MASTER = 1 << 1, 1 << 2
_NO_INTX: Final = 1 << 10
_HAS_CAPABILITIES: Final = 1 << 4
_SUBSYSTEM: Final = 0x2C
_MULTIPLE: Final = 0x80  # of the header type: there are more functions

POWER, MSI, VENDOR, EXPRESS, MSIX = 0x01, 0x05, 0x09, 0x10, 0x11
KEPT: Final = (POWER, MSI, VENDOR, EXPRESS, MSIX)
_MOST_CAPABILITIES: Final = 48  # so many fit behind the header
_LENGTHS: Final = {POWER: 8, EXPRESS: 0x3C, MSIX: 12}
_WIDE_MSI: Final = 1 << 7  # of its control word: the address has 64 bits

_BAR_IO, _BAR_64, _BAR_FLAGS = 1, 4, 0xF
PAGE: Final = 4096


class Bar(NamedTuple):
    """One memory region: its number, which is that of the register of its low half, its size in bytes (a power of two,
    a page at least), the low four bits of that register."""

    number: int
    size: int
    flags: int

    @property
    def wide(self) -> bool:
        """Whether its address has 64 bits, in two registers."""
        return bool(self.flags & _BAR_64)


class MsixCapability(NamedTuple):
    """Where the interrupts' table and pending bits are: region and offset in bytes of each."""

    position: int
    vectors: int
    table_bar: int
    table_offset: int
    pending_bar: int
    pending_offset: int


class Capability(NamedTuple):
    kind: int
    position: int
    length: int


def capabilities(space: bytes) -> tuple[Capability, ...]:
    """The capabilities of ``KEPT`` in a device's own configuration space, by their position in it.

    Raises ConfigError: the list has no end.
    """
    found: list[Capability] = []
    if not struct.unpack_from("<H", space, STATUS)[0] & _HAS_CAPABILITIES:
        return ()
    position = space[CAPABILITIES] & ~3
    seen = 0
    while position:
        seen += 1
        if position < 0x40 or position > SIZE - 4 or seen > _MOST_CAPABILITIES:
            raise ConfigError("a PCI device's list of capabilities makes no sense", hint="give the domain another one")
        kind = space[position]
        # A vendor's own says its length in its third byte.
        length = _LENGTHS.get(kind, max(4, space[position + 2]))
        if kind == MSI:
            length = 14 if space[position + 2] & _WIDE_MSI else 10
        if kind in KEPT and position + length <= SIZE:
            found.append(Capability(kind, position, length))
        position = space[position + 1] & ~3
    if any(capability.kind == MSIX for capability in found):
        found = [capability for capability in found if capability.kind != MSI]
    return tuple(sorted(found, key=lambda capability: capability.position))


def msix(space: bytes) -> MsixCapability | None:
    """What a device's own configuration space says of MSI-X."""
    for kind, position, _ in capabilities(space):
        if kind == MSIX:
            control, table, pending = struct.unpack_from("<HII", space, position + 2)
            return MsixCapability(position, (control & 0x7FF) + 1, table & 7, table & ~7, pending & 7, pending & ~7)
    return None


def msi_vectors(space: bytes) -> int:
    """How many interrupts a device without MSI-X can send by MSI."""
    for kind, position, _ in capabilities(space):
        if kind == MSI:
            return 1 << min(space[position + 2] >> 1 & 7, 5)
    return 0


def memory_bars(space: bytes, sizes: tuple[int, ...]) -> tuple[Bar, ...]:
    """Which of a device's six regions, of these ``sizes`` (0: none), are memory. I/O ports are left out.

    Raises ConfigError for a size that no region can have.
    """
    found = []
    index = 0
    while index < 6:
        (value,) = struct.unpack_from("<I", space, BARS + 4 * index)
        size = sizes[index] if index < len(sizes) else 0
        bar = Bar(index, max(size, PAGE), value & _BAR_FLAGS)
        if size and not value & _BAR_IO:
            if size & (size - 1) or (not bar.wide and size > 1 << 31) or (bar.wide and index == 5):
                raise ConfigError(f"region {index} of a PCI device cannot have {size} bytes")
            found.append(bar)
        index += 2 if bar.wide and not value & _BAR_IO else 1
    return tuple(found)


class ConfigSpace:
    """``changed`` is called after each write that may have an effect outside: on addresses, command or MSI-X."""

    def __init__(
        self, space: bytes, bars: tuple[Bar, ...], changed: Callable[[], None], *, several: bool = False
    ) -> None:
        """``space``: the first 256 bytes of the device's own; ``several``: other functions are in the same slot."""
        self._bars = {bar.number: bar for bar in bars}
        self._changed = changed
        self._bytes = bytearray(SIZE)
        self._writable = bytearray(SIZE)  # which bits
        self._compose(space, several)

    def _compose(self, space: bytes, several: bool) -> None:
        image = self._bytes
        image[0:4] = space[0:4]  # vendor, device
        image[8:12] = space[8:12]  # revision, class
        image[HEADER_TYPE] = _MULTIPLE if several else 0
        image[_SUBSYSTEM : _SUBSYSTEM + 4] = space[_SUBSYSTEM : _SUBSYSTEM + 4]
        self._allow(COMMAND, 2, MEMORY | MASTER | _NO_INTX)
        self._allow(0x0C, 1, 0xFF)  # cache line size
        self._allow(0x3C, 1, 0xFF)  # interrupt line
        for bar in self._bars.values():
            struct.pack_into("<I", image, BARS + 4 * bar.number, bar.flags)
            mask = ~(bar.size - 1) & 0xFFFF_FFFF_FFFF_FFFF
            self._allow(BARS + 4 * bar.number, 8 if bar.wide else 4, mask & (1 << (64 if bar.wide else 32)) - 1)
        kept = capabilities(space)
        pointer = CAPABILITIES
        for kind, position, length in kept:
            image[position : position + length] = space[position : position + length]
            image[position + 1] = 0
            image[pointer] = position
            pointer = position + 1
            self._restrict(kind, position)
        if kept:
            struct.pack_into("<H", image, STATUS, _HAS_CAPABILITIES)
        found = msix(space)
        self._msix = found.position if found else None
        self._msi = next((position for kind, position, _ in kept if kind == MSI), None)

    def _restrict(self, kind: int, position: int) -> None:
        """What of a capability the guest may write, and what it must not see."""
        image = self._bytes
        if kind == POWER:
            # Always in D0, whatever is written; "no soft reset", so that a driver does not restore anything. No PME.
            struct.pack_into("<H", image, position + 2, struct.unpack_from("<H", image, position + 2)[0] & 0x07FF)
            struct.pack_into("<HH", image, position + 4, 1 << 3, 0)
            self._allow(position + 4, 2, 3)
        elif kind == EXPRESS:
            self._restrict_express(position)
        elif kind == MSIX:
            (control,) = struct.unpack_from("<H", image, position + 2)
            struct.pack_into("<H", image, position + 2, control & 0x07FF)
            self._allow(position + 2, 2, 3 << 14)
        elif kind == MSI:
            (control,) = struct.unpack_from("<H", image, position + 2)
            wide = control & _WIDE_MSI
            # Without masks of its own; as many as there can be.
            struct.pack_into("<HI", image, position + 2, wide | min(control >> 1 & 7, 5) << 1, 0)
            image[position + 8 : position + (14 if wide else 10)] = bytes(6 if wide else 2)
            self._allow(position + 2, 2, 1 | 7 << 4)
            self._allow(position + 4, 8 if wide else 4, 0xFFFF_FFFF_FFFF_FFFC if wide else 0xFFFF_FFFC)
            self._allow(position + (12 if wide else 8), 2, 0xFFFF)

    def _restrict_express(self, position: int) -> None:
        """A root complex integrated endpoint: it stands below no port. Without function level reset, link and slot."""
        image = self._bytes
        flags, capability = struct.unpack_from("<HI", image, position + 2)
        struct.pack_into("<HIHH", image, position + 2, flags & 0xFF0F | 9 << 4, capability & ~(1 << 28), 0x2810, 0)
        image[position + 0x0C : position + 0x24] = bytes(0x18)
        image[position + 0x28 : position + 0x3C] = bytes(0x14)
        self._allow(position + 8, 2, 0x7FFF)  # without bit 15, which begins a reset

    def _allow(self, offset: int, length: int, bits: int) -> None:
        self._writable[offset : offset + length] = bits.to_bytes(length, "little")

    # --- the guest's side

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, which lies within 4096 bytes."""
        return bytes(self._bytes[offset : offset + length]).ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Bits that are not the guest's stay as they are."""
        for place, value in enumerate(data[: max(0, SIZE - offset)], start=offset):
            mask = self._writable[place]
            self._bytes[place] = self._bytes[place] & ~mask & 0xFF | value & mask
        self._changed()

    # --- what it comes to

    @property
    def memory_enabled(self) -> bool:
        return bool(self._bytes[COMMAND] & MEMORY)

    @property
    def master(self) -> bool:
        return bool(self._bytes[COMMAND] & MASTER)

    @property
    def msix_enabled(self) -> bool:
        return self._msix_bit(15)

    @property
    def msix_masked(self) -> bool:
        return self._msix_bit(14)

    def _msix_bit(self, number: int) -> bool:
        return self._msix is not None and bool(self._bytes[self._msix + 3] >> (number - 8) & 1)

    @property
    def msi(self) -> tuple[Message, ...]:
        """What each interrupt sends by MSI; none: it is off."""
        if self._msi is None:
            return ()
        (control,) = struct.unpack_from("<H", self._bytes, self._msi + 2)
        if not control & 1:
            return ()
        wide = control & _WIDE_MSI
        address, data = struct.unpack_from("<QH" if wide else "<IH", self._bytes, self._msi + 4)
        count = 1 << min(control >> 4 & 7, control >> 1 & 7)
        # The lowest bits of the data are the interrupt's number.
        return tuple(Message(address, data & ~(count - 1) | number) for number in range(count))

    @property
    def bars(self) -> tuple[Bar, ...]:
        return tuple(self._bars.values())

    def address(self, bar: Bar) -> int:
        """Where the guest has put a region."""
        kind = "<Q" if bar.wide else "<I"
        value: int = struct.unpack_from(kind, self._bytes, BARS + 4 * bar.number)[0]
        return value & ~_BAR_FLAGS
