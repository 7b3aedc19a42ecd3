"""The kernel's side of a vhost-net device and its tap, as far as their documentation goes: no such device is here."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field

FEATURES = 1 << 32 | 1 << 33 | 1 << 15 | 1 << 27 | 1 << 28 | 1 << 29


@dataclass
class FakeVhost:
    """``ioctl`` stands in for ``fcntl.ioctl``. ``backends``: by ring, the tap or -1; ``refuse``: the errno of
    a request for a ring, but for one that takes something back."""

    tap: int
    owned: bool = False
    features: int = 0
    memory: tuple[int, ...] = ()
    sizes: dict[int, int] = field(default_factory=dict)
    addresses: dict[int, tuple[int, ...]] = field(default_factory=dict)
    kicks: dict[int, int] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    backends: dict[int, int] = field(default_factory=lambda: {0: -1, 1: -1})
    offload: int = 0
    offered: int = FEATURES
    refuse: dict[tuple[int, int], int] = field(default_factory=dict)

    def ioctl(self, fd: int, request: int, argument: int | bytes | bytearray) -> int:
        if fd == self.tap:
            assert request == 0x400454D0 and isinstance(argument, int)
            if argument & ~7 or argument & 6 and not argument & 1:
                raise _error(errno.EINVAL)
            self.offload = argument
            return 0
        if request == 0xAF01:
            if self.owned:
                raise _error(errno.EBUSY)
            self.owned = True
            return 0
        assert self.owned or request == 0x8008AF00
        if request == 0x8008AF00:
            assert isinstance(argument, bytearray)
            argument[:] = struct.pack("<Q", self.offered)
            return 0
        assert isinstance(argument, bytes)
        return self._set(request, argument)

    def _set(self, request: int, argument: bytes) -> int:
        if request == 0x4008AF00:
            (self.features,) = struct.unpack("<Q", argument)
            if self.features & ~self.offered:
                raise _error(errno.EOPNOTSUPP)
            return 0
        if request == 0x4008AF03:
            self.memory = struct.unpack("<IIQQQQ", argument)
            return 0
        if request == 0x4028AF11:
            index, _, *addresses = struct.unpack("<IIQQQQ", argument)
            self.addresses[index] = tuple(addresses)
            return 0
        index, value = struct.unpack("<Ii", argument)
        if value >= 0 and (code := self.refuse.get((request, index))):
            raise _error(code)
        if request in (0x4008AF10, 0x4008AF12) and self.backends[index] >= 0:
            raise _error(errno.EBUSY)
        kept = {0x4008AF10: self.sizes, 0x4008AF12: {}, 0x4008AF20: self.kicks, 0x4008AF21: self.calls}
        kept.get(request, self.backends)[index] = value
        return 0


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
