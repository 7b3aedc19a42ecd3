"""One device in a guest's slot: its configuration space, regions and interrupts, and what the machine does for them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vambrace.errors import ConfigError
from vambrace.pci.config import (
    COMMAND,
    MASTER,
    MEMORY,
    MSI,
    MSIX,
    PAGE,
    SIZE,
    Bar,
    ConfigSpace,
    memory_bars,
    msi_vectors,
    msix,
)
from vambrace.pci.msix import ENTRY, Message, MsixTable

#: Most interrupts of one device that its guest gets; Linux asks for one for each queue and processor.
MOST_VECTORS = 256


class Region(NamedTuple):
    """One region of the device as the kernel gives it: bytes, and those parts (offset, bytes) that can be mapped."""

    size: int
    mappable: tuple[tuple[int, int], ...]


class Hardware(Protocol):
    """The device behind a function. Raises ``KvmError`` where the kernel refuses."""

    regions: tuple[Region, ...]  # 0 to 5

    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None: ...
    def read(self, region: int, offset: int, length: int) -> bytes: ...
    def write(self, region: int, offset: int, data: bytes) -> None: ...
    def set_interrupts(self, kind: int, eventfds: list[int]) -> None: ...  # MSI or MSIX; none: off


class Platform(Protocol):
    """What the machine does for a function. ``Mapping`` is whatever ``map`` has given."""

    def map(self, hardware: Hardware, region: int, offset: int, size: int, address: int) -> int | None: ...
    def unmap(self, mapping: int) -> None: ...
    def vectors(self, count: int) -> list[int]: ...  # eventfds
    def route(self, function: int, eventfd: int, message: Message | None) -> None: ...


class Window(NamedTuple):
    """Guest-physical addresses at which regions may lie."""

    start: int
    end: int

    def holds(self, address: int, size: int) -> bool:
        return self.start <= address and address + size <= self.end


class Place(NamedTuple):
    """Where a region is at the moment, and how its parts are mapped."""

    bar: Bar
    address: int
    mappings: list[int]


class Function:
    """``number`` is the device and function number on bus 0. Calls are made with the bridge's lock held.

    Raises ``ConfigError`` for a device that cannot be shown to a guest.
    """

    def __init__(
        self,
        number: int,
        hardware: Hardware,
        platform: Platform,
        windows: tuple[Window, ...],
        *,
        several: bool = False,
    ) -> None:
        self.number = number
        self._hardware = hardware
        self._platform = platform
        self._windows = windows
        space = hardware.read_config(0, SIZE)
        bars = memory_bars(space, tuple(region.size for region in hardware.regions))
        self.config = ConfigSpace(space, bars, self._changed, several=several)
        self._places: list[Place] = []
        self._master = False
        self._capability = msix(space)
        self._table: MsixTable | None = None
        self._eventfds: list[int] = []
        self._sending = 0  # interrupts
        self._vectors = msi_vectors(space)
        if self._capability is not None:
            self._vectors = self._capability.vectors
            self._check_table(bars)
            self._table = MsixTable(self._capability.vectors, self._route)
        # Its memory answers from now on, for as long as it is mapped; whether the guest reaches it is decided here.
        self._command(MEMORY)

    def _check_table(self, bars: tuple[Bar, ...]) -> None:
        assert self._capability is not None
        found = self._capability
        if found.vectors > MOST_VECTORS:
            raise ConfigError(f"a PCI device has {found.vectors} interrupts", hint=f"at most {MOST_VECTORS}")
        sizes = {bar.number: bar.size for bar in bars}
        for bar, end in (
            (found.table_bar, found.table_offset + ENTRY * found.vectors),
            (found.pending_bar, found.pending_offset + -(-found.vectors // 64) * 8),
        ):
            if end > sizes.get(bar, 0):
                raise ConfigError("a PCI device's table of interrupts lies outside of its regions")

    # --- the guest's side

    def find(self, address: int) -> Place | None:
        """The region that is at ``address``."""
        for place in self._places:
            if place.address <= address < place.address + place.bar.size:
                return place
        return None

    def read(self, place: Place, offset: int, length: int) -> bytes:
        """Of what is not mapped. What is not there reads as ones."""
        inside = self._in_table(place.bar.number, offset)
        if inside is not None:
            assert self._table is not None
            return self._table.read(inside, length)
        if self._in_pending(place.bar.number, offset):
            return bytes(length)  # none: what is masked here waits in its eventfd
        region = self._hardware.regions[place.bar.number]
        last = offset + length - 1
        if last >= region.size or not self._is_free(place.bar.number, last):
            return b"\xff" * length
        return self._hardware.read(place.bar.number, offset, length)

    def write(self, place: Place, offset: int, data: bytes) -> None:
        inside = self._in_table(place.bar.number, offset)
        if inside is not None:
            assert self._table is not None
            self._table.write(inside, data)
            return
        last = offset + len(data) - 1
        free = self._is_free(place.bar.number, offset) and self._is_free(place.bar.number, last)
        if free and last < self._hardware.regions[place.bar.number].size:
            self._hardware.write(place.bar.number, offset, data)

    def _is_free(self, bar: int, offset: int) -> bool:
        """Whether that is the device's own business, and not that of its interrupts."""
        return self._in_table(bar, offset) is None and not self._in_pending(bar, offset)

    def _in_table(self, bar: int, offset: int) -> int | None:
        """Where in the table of interrupts an offset of a region is."""
        found = self._capability
        if found is None or bar != found.table_bar or not 0 <= offset - found.table_offset < ENTRY * found.vectors:
            return None
        return offset - found.table_offset

    def _in_pending(self, bar: int, offset: int) -> bool:
        found = self._capability
        return (
            found is not None
            and bar == found.pending_bar
            and 0 <= offset - found.pending_offset < -(-found.vectors // 64) * 8
        )

    # --- effects

    def _changed(self) -> None:
        """The guest has written to the configuration space."""
        wanted = self._wanted()
        if [(place.bar, place.address) for place in self._places] != wanted:
            self._unmap()
            for bar, address in wanted:
                self._places.append(Place(bar, address, self._map(bar, address)))
        if self._table is not None:
            self._send(self._vectors if self.config.msix_enabled else 0)
            self._table.enable(self.config.msix_enabled and not self.config.msix_masked)
        elif self._vectors:
            messages = self.config.msi
            self._send(len(messages))
            for vector in range(self._vectors):
                self._route(vector, messages[vector] if vector < len(messages) else None)
        if self.config.master != self._master:
            self._master = self.config.master
            self._command(MEMORY | (MASTER if self._master else 0))

    def _wanted(self) -> list[tuple[Bar, int]]:
        """Regions that lie where some may lie; elsewhere, over memory for example, none is ever shown."""
        if not self.config.memory_enabled:
            return []
        places = ((bar, self.config.address(bar)) for bar in self.config.bars)
        return [
            (bar, address)
            for bar, address in places
            if any(window.holds(address, bar.size) for window in self._windows)
        ]

    def _map(self, bar: Bar, address: int) -> list[int]:
        mappings = []
        for offset, size in self._mappable(bar):
            mapping = self._platform.map(self._hardware, bar.number, offset, size, address + offset)
            if mapping is not None:
                mappings.append(mapping)
        return mappings

    def _mappable(self, bar: Bar) -> list[tuple[int, int]]:
        """Parts of a region, whole pages, without those of the table and of the pending bits."""
        holes = []
        if found := self._capability:
            for where, offset, size in (
                (found.table_bar, found.table_offset, ENTRY * found.vectors),
                (found.pending_bar, found.pending_offset, -(-found.vectors // 64) * 8),
            ):
                if where == bar.number:
                    holes.append((offset // PAGE * PAGE, -(-(offset + size) // PAGE) * PAGE))
        parts = [(offset, offset + size) for offset, size in self._hardware.regions[bar.number].mappable]
        for hole, hole_end in sorted(holes):
            parts = [
                piece
                for start, end in parts
                for piece in ((start, min(end, hole)), (max(start, hole_end), end))
                if piece[0] < piece[1]
            ]
        whole = ((-(-start // PAGE) * PAGE, end // PAGE * PAGE) for start, end in parts)
        return [(start, end - start) for start, end in whole if start < end]

    def _unmap(self) -> None:
        for place in self._places:
            for mapping in place.mappings:
                self._platform.unmap(mapping)
        self._places = []

    def _send(self, count: int) -> None:
        """Let the device send so many interrupts to eventfds."""
        if count == self._sending:
            return
        kind = MSI if self._capability is None else MSIX
        if self._sending:
            self._hardware.set_interrupts(kind, [])
        self._sending = count
        if count:
            if not self._eventfds:
                self._eventfds = self._platform.vectors(self._vectors)
            self._hardware.set_interrupts(kind, self._eventfds[:count])

    def _route(self, vector: int, message: Message | None) -> None:
        if self._eventfds:
            self._platform.route(self.number, self._eventfds[vector], message)

    def _command(self, bits: int) -> None:
        self._hardware.write_config(COMMAND, bits.to_bytes(2, "little"))

    def quiet(self) -> None:
        """No access to memory, no interrupt, nothing mapped: before the device is reset and given away."""
        self._command(0)
        self._send(0)
        self._unmap()
