"""Guest memory as devices see it: bounds are checked here, once."""

from __future__ import annotations


class GuestFault(Exception):
    """The guest broke the virtio protocol; its device stops until it is reset. Never leaves ``virtio``."""


class GuestMemory:
    """``view`` (writable bytes) at guest-physical address ``base``, host address ``host``."""

    def __init__(self, view: memoryview, base: int, host: int) -> None:
        self._view = view
        self.base = base
        self.host = host
        self.size = len(view)

    def check(self, address: int, length: int) -> int:
        """Offset in memory of a range that must lie within it; raises ``GuestFault``."""
        offset = address - self.base
        if offset < 0 or length < 0 or offset + length > self.size:
            raise GuestFault(f"{length} bytes at {address:#x} are outside of memory")
        return offset

    def slice(self, address: int, length: int) -> memoryview:
        """``length`` bytes at ``address``, writable, not copied. Raises ``GuestFault``."""
        offset = self.check(address, length)
        return self._view[offset : offset + length]

    def host_address(self, address: int, length: int) -> int:
        """Where this process has the range, for vhost. Raises ``GuestFault``."""
        return self.host + self.check(address, length)
