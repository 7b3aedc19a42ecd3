"""The IOMMU device (virtio 1.3, section 5.13): what the guest maps is all that its devices reach.

An endpoint is a device by its number on the PCI bus; a domain is an address space that the guest makes, and it lives as
long as an endpoint is attached to it. Without a mapping there is no access: bypass is not offered. Requests are served
in the thread of the vCPU that made them, which waits for them anyway.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
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

_HEAD = struct.Struct("<B3s")
_ATTACHMENT = struct.Struct("<III4s")
_DETACHMENT = struct.Struct("<II8s")
_MAPPING = struct.Struct("<IQQQI")
_UNMAPPING = struct.Struct("<IQQ4s")
_PROBING = struct.Struct("<I64s")
_BODIES: Final[Mapping[int, struct.Struct]] = {
    _ATTACH: _ATTACHMENT,
    _DETACH: _DETACHMENT,
    _MAP: _MAPPING,
    _UNMAP: _UNMAPPING,
    _PROBE_TYPE: _PROBING,
}
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
    """Mappings by their address, and who is attached."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.mappings: dict[int, _Mapping] = {}
        self.endpoints: set[int] = set()

    def within(self, first: int, last: int) -> list[_Mapping]:
        """The mappings that have an address of the range."""
        index = bisect_left(self.starts, first)
        if index and self.mappings[self.starts[index - 1]].last >= first:
            index -= 1
        found = []
        while index < len(self.starts) and self.starts[index] <= last:
            found.append(self.mappings[self.starts[index]])
            index += 1
        return found

    def add(self, mapping: _Mapping) -> None:
        self.starts.insert(bisect_left(self.starts, mapping.start), mapping.start)
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
        request = chain.prefix(_HEAD.size + _PROBING.size)
        if len(request) < _HEAD.size:
            raise GuestFault("IOMMU request without type")
        kind, reserved = _HEAD.unpack_from(request)
        properties = b""
        tail = 4
        if kind == _PROBE_TYPE:
            tail += PROBE_SIZE
        if chain.capacity < tail:
            raise GuestFault("IOMMU request without room for its status")
        try:
            if kind not in _BODIES:
                raise _Refused(UNSUPPORTED)
            body = _BODIES[kind]
            if len(request) < _HEAD.size + body.size or any(reserved):
                raise _Refused(INVALID)
            properties = self._serve(kind, body.unpack_from(request, _HEAD.size))
            status = OK
        except _Refused as refused:
            status = refused.status
        return properties.ljust(tail - 4, b"\0") + bytes((status, 0, 0, 0))

    def _serve(self, kind: int, body: tuple[int | bytes, ...]) -> bytes:
        numbers = [value for value in body if isinstance(value, int)]
        if any(any(value) for value in body if isinstance(value, bytes)) and kind != _PROBE_TYPE:
            raise _Refused(INVALID)
        if kind == _ATTACH:
            self._attach(*numbers)
        elif kind == _DETACH:
            self._detach(*numbers)
        elif kind == _MAP:
            self._map(*numbers)
        elif kind == _UNMAP:
            self._unmap(*numbers)
        else:
            self._check_endpoint(numbers[0])
            return self._properties
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
        if not self._reaches(domain, space):
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
        domain.endpoints.add(endpoint)

    def _detach(self, name: int, endpoint: int) -> None:
        self._check_endpoint(endpoint)
        if name not in self._domains:
            raise _Refused(NO_ENTRY)
        if endpoint not in self._domains[name].endpoints:
            raise _Refused(INVALID)
        self._leave(name, endpoint)

    def _map(self, name: int, first: int, last: int, physical: int, flags: int) -> None:
        if name not in self._domains:
            raise _Refused(NO_ENTRY)
        size = last - first + 1
        if flags & ~(_READ | _WRITE) or not flags:
            raise _Refused(INVALID)
        if size <= 0 or first % PAGE or size % PAGE or physical % PAGE:
            raise _Refused(RANGE)
        if not any(low <= first and last <= high for low, high in self._reach.ranges):
            raise _Refused(RANGE)
        try:
            offset = self._memory.check(physical, size)
        except GuestFault:
            raise _Refused(FAULT) from None
        domain = self._domains[name]
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
            for space in self._spaces_of(domain):
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

    def _spaces_of(self, domain: _Domain) -> list[Space]:
        found: list[Space] = []
        for endpoint in sorted(domain.endpoints):
            if not any(self._spaces[endpoint] is space for space in found):
                found.append(self._spaces[endpoint])
        return found

    def _reaches(self, domain: _Domain, space: Space) -> bool:
        return any(found is space for found in self._spaces_of(domain))

    def _leave(self, name: int, endpoint: int) -> None:
        """Take an endpoint out of its domain; with the last one, the domain ends."""
        domain = self._domains[name]
        if len(domain.endpoints) == 1:
            self._drop(domain, list(domain.mappings.values()))
            del self._domains[name]
            return
        domain.endpoints.discard(endpoint)
        space = self._spaces[endpoint]
        if not self._reaches(domain, space):
            for mapping in domain.mappings.values():
                space.unmap(mapping.start, mapping.size)

    def _drop(self, domain: _Domain, mappings: Iterable[_Mapping]) -> None:
        """First out of every device's reach, then not pinned any more."""
        for mapping in mappings:
            for space in self._spaces_of(domain):
                space.unmap(mapping.start, mapping.size)
            domain.remove(mapping)
            self._count -= 1
            self._pins.unpin(mapping.offset, mapping.size)

    def reset(self) -> None:
        for domain in self._domains.values():
            self._drop(domain, list(domain.mappings.values()))
        self._domains.clear()


def _properties(reach: Reach) -> Iterable[bytes]:
    """What an endpoint cannot use for memory: holes of what it reaches, of which one may be that of the interrupts."""
    first, last = reach.msi
    for low, high in reach.holes:
        if low <= first and last <= high:
            first, last = low, high
        else:
            yield _PROPERTY.pack(_RESERVED_MEMORY, _PROPERTY.size - 4, _RESERVED, b"\0\0\0", low, high)
    yield _PROPERTY.pack(_RESERVED_MEMORY, _PROPERTY.size - 4, _MSI, b"\0\0\0", first, last)
