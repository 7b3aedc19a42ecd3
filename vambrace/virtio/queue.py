"""The split virtqueue (virtio 1.2, section 2.7), device side.

Without indirect descriptors and without event indices: neither is offered, so neither is accepted.
What is read from the guest is read once and checked afterwards.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from vambrace.virtio.memory import GuestFault, GuestMemory

MAX_SIZE = 256
_NEXT, _WRITE = 1, 2
_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_INDEX = struct.Struct("<H")
_NO_INTERRUPT = 1


class Chain(NamedTuple):
    """One request: slices of guest memory that the device reads, then those that it writes.

    The guest may change their contents at any time: copy before checking. ``places`` are offset in guest memory and
    length of each of the ``writable``.
    """

    head: int
    readable: tuple[memoryview, ...]
    writable: tuple[memoryview, ...]
    places: tuple[tuple[int, int], ...]

    def prefix(self, length: int) -> bytes:
        """A copy of the first ``length`` readable bytes, fewer if there are fewer."""
        data = b""
        for part in self.readable:
            if len(data) == length:
                break
            data += part[: length - len(data)]
        return data

    @property
    def capacity(self) -> int:
        """Bytes that can be written."""
        return sum(map(len, self.writable))

    def write(self, data: bytes) -> int:
        """Fill the writable slices with ``data`` as far as both go; the number of bytes written."""
        done = 0
        for part in self.writable:
            piece = data[done : done + len(part)]
            part[: len(piece)] = piece
            done += len(piece)
        return done


class Queue:
    """A queue that the driver has set up. ``size`` is a power of two; addresses are guest-physical.

    Raises ``GuestFault``: a size or address that cannot be.
    """

    def __init__(self, memory: GuestMemory, size: int, descriptors: int, available: int, used: int) -> None:
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise GuestFault(f"queue of {size} entries")
        if descriptors % 16 or available % 2 or used % 4:
            raise GuestFault("queue is not aligned")
        self.size = size
        self._memory = memory
        self._descriptors = memory.slice(descriptors, 16 * size)
        self._available = memory.slice(available, 6 + 2 * size)
        self._used = memory.slice(used, 6 + 8 * size)
        self.pushed = 0  # since the transport last looked
        self.unfinished = False  # the device's turn ended before there was nothing left
        self._last = self._offered = 0  # the next request, and up to where the driver has offered some
        self._used_index = 0
        self._lock = threading.Lock()
        self._lock.acquire()

    def pop(self) -> Chain | None:
        """The next request, or None. Raises ``GuestFault``."""
        if self._last == self._offered:
            (self._offered,) = _INDEX.unpack_from(self._available, 2)
            waiting = (self._offered - self._last) & 0xFFFF
            if waiting == 0:
                return None
            if waiting > self.size:
                raise GuestFault("more requests than the queue has entries")
            self._fence()
        (head,) = _INDEX.unpack_from(self._available, 4 + 2 * (self._last % self.size))
        chain = self._walk(head)
        self._last = (self._last + 1) & 0xFFFF
        return chain

    def requests(self) -> Iterator[Chain]:
        """What waits, at most as many as the queue has entries: a guest that adds for ever gets its turn,
        no more. Raises ``GuestFault``."""
        for _ in range(self.size):
            chain = self.pop()
            if chain is None:
                return
            yield chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, of which the device wrote the first ``written`` bytes."""
        _USED.pack_into(self._used, 4 + 8 * (self._used_index % self.size), chain.head, written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        self.pushed += 1
        self._fence()
        _INDEX.pack_into(self._used, 2, self._used_index)

    def wants_interrupt(self) -> bool:
        """Whether the driver asks to be told of what was pushed."""
        self._fence()
        return not _INDEX.unpack_from(self._available, 0)[0] & _NO_INTERRUPT

    def _walk(self, head: int) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        places: list[tuple[int, int]] = []
        index = head
        total = 0
        for _ in range(self.size):  # a longer chain has a loop
            if index >= self.size:
                raise GuestFault("descriptor outside of the queue")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, 16 * index)
            if flags & ~(_NEXT | _WRITE):
                raise GuestFault("descriptor with unknown flags")
            part = self._memory.slice(address, length)
            total += length
            if total >= 1 << 32:
                raise GuestFault("request of 4 GiB or more")
            if flags & _WRITE:
                writable.append(part)
                places.append((address - self._memory.base, length))
            elif writable:
                raise GuestFault("readable descriptor after a writable one")
            else:
                readable.append(part)
            if not flags & _NEXT:
                return Chain(head, tuple(readable), tuple(writable), tuple(places))
            index = following
        raise GuestFault("descriptors form a loop")

    def _fence(self) -> None:
        """Order memory accesses before and after this call against the guest's CPUs.

        Python has no barrier of its own, but releasing a lock is a store-release and taking it a
        load-acquire, and arm64 orders the second after the first.
        """
        self._lock.release()
        self._lock.acquire()
