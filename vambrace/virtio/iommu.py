"""The IOMMU device (virtio 1.3, section 5.13): what the guest maps is all that its devices reach.

An endpoint is a device by its number on the PCI bus; a domain is an address space that the guest makes, and it lives as
long as an endpoint is attached to it. Without a mapping there is no access: bypass is not offered. Requests are served
in the thread of the vCPU that made them, which waits for them anyway.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from vambrace.errors import KvmError, PagerError
from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.memory import GuestFault
from vambrace.virtio.queue import Chain, Queue

PAGE: Final = 4096
#: Mappings of all domains together; each costs memory here and in the kernel.
MOST_MAPPINGS: Final = 1 << 15
PROBE_SIZE: Final = 512

_INPUT_RANGE, _DOMAIN_RANGE, _MAP_UNMAP, _PROBE = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_ATTACH, _DETACH, _MAP, _UNMAP, _PROBE_TYPE = 1, 2, 3, 4, 5
OK, IO_ERROR, UNSUPPORTED, DEVICE_ERROR, INVALID, RANGE, NO_ENTRY, FAULT, NO_MEMORY = range(9)
_READ, _WRITE = 1, 2
_RESERVED_MEMORY: Final = 1  # a property
_RESERVED, _MSI = 0, 1  # and its kinds

_HEAD: Final = 4  # bytes: the type, and three that are reserved
#: The numbers of each request behind its head, and how many reserved bytes follow. Of a probe these may be anything.
_BODIES: Final = {
    _ATTACH: (struct.Struct("<4xIII"), 4),
    _DETACH: (struct.Struct("<4xII"), 8),
    _MAP: (struct.Struct("<4xIQQQI"), 0),
    _UNMAP: (struct.Struct("<4xIQQ"), 4),
    _PROBE_TYPE: (struct.Struct("<4xI"), 64),
}
_LONGEST: Final = max(body.size + reserved for body, reserved in _BODIES.values())
_PROPERTY = struct.Struct("<HHB3sQQ")


class Space(Protocol):
    """The address space of one endpoint, or of several that cannot be told apart. Raises ``KvmError``."""

    def map(self, iova: int, address: int, size: int, *, read: bool, write: bool) -> None: ...
    def unmap(self, iova: int, size: int) -> None: ...


class Pins(Protocol):
    """Memory that devices reach stays where it is; offsets and lengths in bytes. Raises ``PagerError``."""

    def pin(self, offset: int, length: int) -> None: ...
    def unpin(self, offset: int, length: int) -> None: ...


class Memory(Protocol):
    """Guest memory: see ``GuestMemory``."""

    base: int
    host: int

    def check(self, address: int, length: int) -> int: ...


class Reach(NamedTuple):
    """What the devices can be mapped to: (first, last address) rising, and where their interrupts are written to."""

    ranges: tuple[tuple[int, int], ...]
    msi: tuple[int, int]

    def holds(self, first: int, last: int) -> bool:
        """Whether all of these addresses lie in one of the ranges."""
        for low, high in self.ranges:
            if last <= high:
                return low <= first
        return False

    @property
    def holes(self) -> list[tuple[int, int]]:
        """What lies between, which the guest must not use."""
        pairs = zip(self.ranges, self.ranges[1:], strict=False)
        return [(one[1] + 1, other[0] - 1) for one, other in pairs if one[1] + 1 < other[0]]


class _Mapping(NamedTuple):
    start: int
    size: int
    offset: int
    read: bool
    write: bool

    @property
    def last(self) -> int:
        return self.start + self.size - 1


class _Refused(Exception):
    """The request has this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Domain:
    """Mappings by their address, who is attached, and the spaces of these, each once."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.mappings: dict[int, _Mapping] = {}
        self.endpoints: set[int] = set()
        self.spaces: list[Space] = []

    def within(self, first: int, last: int) -> list[_Mapping]:
        """The mappings that have an address of the range, rising."""
        starts = self.starts
        index = bisect_left(starts, first)
        if index and self.mappings[starts[index - 1]].last >= first:
            index -= 1
        end = bisect_right(starts, last, index)
        return [self.mappings[start] for start in starts[index:end]]

    def add(self, mapping: _Mapping) -> None:
        insort(self.starts, mapping.start)
        self.mappings[mapping.start] = mapping

    def remove(self, mapping: _Mapping) -> None:
        del self.starts[bisect_left(self.starts, mapping.start)]
        del self.mappings[mapping.start]


class Iommu(Device):
    """``spaces`` by endpoint; endpoints with the same one can be attached to the same domain only."""

    kind = 23
    queues = 2  # requests, and events, of which there are none
    features = VERSION_1 | _INPUT_RANGE | _DOMAIN_RANGE | _MAP_UNMAP | _PROBE
    direct = True

    def __init__(self, spaces: Mapping[int, Space], memory: Memory, pins: Pins, reach: Reach) -> None:
        self._spaces = dict(spaces)
        self._memory = memory
        self._pins = pins
        self._reach = reach
        self._domains: dict[int, _Domain] = {}
        self._count = 0
        first, last = reach.ranges[0][0], reach.ranges[-1][1]
        # page_size_mask (any size of whole pages), input_range, domain_range, probe_size, bypass
        mask = ~(PAGE - 1) & 0xFFFF_FFFF_FFFF_FFFF
        self.config = struct.pack("<QQQIIIB3x", mask, first, last, 0, 0xFFFF_FFFF, PROBE_SIZE, 0)
        self._properties = b"".join(_properties(reach)).ljust(PROBE_SIZE, b"\0")
        if len(self._properties) > PROBE_SIZE:
            raise KvmError("VFIO: too many addresses are reserved on this machine")

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        queue = queues[index]
        if queue is None or index != 0:
            return
        for chain in queue.requests():
            queue.push(chain, chain.write(self._answer(chain)))

    def _answer(self, chain: Chain) -> bytes:
        """What is written back: properties where it is a probe, then the status."""
        request = chain.prefix(_LONGEST)
        if len(request) < _HEAD:
            raise GuestFault("IOMMU request without type")
        kind = request[0]
        properties = b""
        tail = 4 + (PROBE_SIZE if kind == _PROBE_TYPE else 0)
        if chain.capacity < tail:
            raise GuestFault("IOMMU request without room for its status")
        try:
            properties = self._serve(kind, request)
            status = OK
        except _Refused as refused:
            status = refused.status
        return properties.ljust(tail - 4, b"\0") + bytes((status, 0, 0, 0))

    def _serve(self, kind: int, request: bytes) -> bytes:
        if kind not in _BODIES:
            raise _Refused(UNSUPPORTED)
        body, reserved = _BODIES[kind]
        if len(request) < body.size + reserved or any(request[1:_HEAD]):
            raise _Refused(INVALID)
        numbers = body.unpack_from(request)
        if kind == _PROBE_TYPE:
            self._check_endpoint(*numbers)
            return self._properties
        if reserved and any(request[body.size : body.size + reserved]):
            raise _Refused(INVALID)
        if kind == _MAP:
            self._map(*numbers)
        elif kind == _UNMAP:
            self._unmap(*numbers)
        elif kind == _ATTACH:
            self._attach(*numbers)
        else:
            self._detach(*numbers)
        return b""

    def _check_endpoint(self, endpoint: int) -> None:
        if endpoint not in self._spaces:
            raise _Refused(NO_ENTRY)

    def _domain_of(self, endpoint: int) -> int | None:
        return next((name for name, domain in self._domains.items() if endpoint in domain.endpoints), None)

    # --- requests

    def _attach(self, name: int, endpoint: int, flags: int) -> None:
        if flags:
            raise _Refused(INVALID)
        self._check_endpoint(endpoint)
        present = self._domain_of(endpoint)
        if present == name:
            return
        space = self._spaces[endpoint]
        # What shares a space goes to one domain, and may not be moved while the other is elsewhere.
        for other, theirs in self._spaces.items():
            if other != endpoint and theirs is space and self._domain_of(other) not in (None, name):
                raise _Refused(UNSUPPORTED)
        if present is not None:
            self._leave(present, endpoint)
        domain = self._domains.setdefault(name, _Domain())
        done: list[_Mapping] = []
        if not _among(space, domain.spaces):
            try:
                for mapping in domain.mappings.values():
                    self._enter(space, mapping)
                    done.append(mapping)
            except KvmError:
                for mapping in done:
                    space.unmap(mapping.start, mapping.size)
                if not domain.endpoints:
                    del self._domains[name]
                raise _Refused(DEVICE_ERROR) from None
            domain.spaces.append(space)
        domain.endpoints.add(endpoint)

    def _detach(self, name: int, endpoint: int) -> None:
        self._check_endpoint(endpoint)
        if name not in self._domains:
            raise _Refused(NO_ENTRY)
        if endpoint not in self._domains[name].endpoints:
            raise _Refused(INVALID)
        self._leave(name, endpoint)

    def _map(self, name: int, first: int, last: int, physical: int, flags: int) -> None:
        domain = self._domains.get(name)
        if domain is None:
            raise _Refused(NO_ENTRY)
        size = last - first + 1
        if flags & ~(_READ | _WRITE) or not flags:
            raise _Refused(INVALID)
        if size <= 0 or (first | size | physical) % PAGE or not self._reach.holds(first, last):
            raise _Refused(RANGE)
        try:
            offset = self._memory.check(physical, size)
        except GuestFault:
            raise _Refused(FAULT) from None
        if domain.within(first, last):
            raise _Refused(INVALID)
        if self._count >= MOST_MAPPINGS:
            raise _Refused(NO_MEMORY)
        mapping = _Mapping(first, size, offset, bool(flags & _READ), bool(flags & _WRITE))
        try:
            self._pins.pin(offset, size)
        except PagerError:
            raise _Refused(NO_MEMORY) from None
        done: list[Space] = []
        try:
            for space in domain.spaces:
                self._enter(space, mapping)
                done.append(space)
        except KvmError:
            for space in done:
                space.unmap(first, size)
            self._pins.unpin(offset, size)
            raise _Refused(DEVICE_ERROR) from None
        domain.add(mapping)
        self._count += 1

    def _unmap(self, name: int, first: int, last: int) -> None:
        if name not in self._domains:
            raise _Refused(NO_ENTRY)
        if last < first:
            raise _Refused(RANGE)
        domain = self._domains[name]
        found = domain.within(first, last)
        if found and (found[0].start < first or found[-1].last > last):
            raise _Refused(RANGE)  # it would be cut in two
        self._drop(domain, found)

    # --- effects

    def _enter(self, space: Space, mapping: _Mapping) -> None:
        address = self._memory.host + mapping.offset
        space.map(mapping.start, address, mapping.size, read=mapping.read, write=mapping.write)

    def _leave(self, name: int, endpoint: int) -> None:
        """Take an endpoint out of its domain; with the last one, the domain ends."""
        domain = self._domains[name]
        if len(domain.endpoints) == 1:
            self._drop(domain, list(domain.mappings.values()))
            del self._domains[name]
            return
        domain.endpoints.discard(endpoint)
        space = self._spaces[endpoint]
        if not any(self._spaces[other] is space for other in domain.endpoints):
            for mapping in domain.mappings.values():
                space.unmap(mapping.start, mapping.size)
            domain.spaces = [other for other in domain.spaces if other is not space]

    def _drop(self, domain: _Domain, mappings: Sequence[_Mapping]) -> None:
        """First out of every device's reach, then not pinned any more."""
        for run in _runs(mappings):
            for space in domain.spaces:
                space.unmap(run[0].start, run[-1].last + 1 - run[0].start)
            for mapping in run:
                domain.remove(mapping)
                self._count -= 1
                self._pins.unpin(mapping.offset, mapping.size)

    def reset(self) -> None:
        for domain in self._domains.values():
            self._drop(domain, list(domain.mappings.values()))
        self._domains.clear()


def _among(space: Space, spaces: Sequence[Space]) -> bool:
    return any(other is space for other in spaces)


def _runs(mappings: Sequence[_Mapping]) -> Iterator[list[_Mapping]]:
    """Those that follow each other without a gap, together: one call of the kernel ends them, and one flush of its
    IOMMU."""
    run: list[_Mapping] = []
    for mapping in mappings:
        if run and run[-1].last + 1 != mapping.start:
            yield run
            run = []
        run.append(mapping)
    if run:
        yield run


def _properties(reach: Reach) -> Iterable[bytes]:
    """What an endpoint cannot use for memory: holes of what it reaches, of which one may be that of the interrupts."""
    first, last = reach.msi
    for low, high in reach.holes:
        if low <= first and last <= high:
            first, last = low, high
        else:
            yield _PROPERTY.pack(_RESERVED_MEMORY, _PROPERTY.size - 4, _RESERVED, b"\0\0\0", low, high)
    yield _PROPERTY.pack(_RESERVED_MEMORY, _PROPERTY.size - 4, _MSI, b"\0\0\0", first, last)
