"""The table of a device's message interrupts (PCI Local Bus 3.0, section 6.8.2): the guest's is here, the device's is
the host's alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

ENTRY: Final = 16
_MASKED: Final = 1
_VECTOR = struct.Struct("<QII")


class Message(NamedTuple):
    """What the guest wants written, and where to, for one interrupt."""

    address: int
    data: int


class MsixTable:
    """``changed`` gets a vector and what it sends, None while it is masked."""

    def __init__(self, vectors: int, changed: Callable[[int, Message | None], None]) -> None:
        self.vectors = vectors
        self._changed = changed
        self._enabled = False  # and not masked as a whole
        # After reset each is masked.
        self._table = bytearray(b"".join(_VECTOR.pack(0, 0, _MASKED) for _ in range(vectors)))
        self._told: list[Message | None] = [None] * vectors

    @property
    def size(self) -> int:
        """Bytes of the table."""
        return ENTRY * self.vectors

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._table[offset : offset + length]).ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Whole aligned words of 4 or 8 bytes, as the specification demands; nothing else has an effect."""
        if len(data) not in (4, 8) or offset % len(data) or offset + len(data) > self.size:
            return
        self._table[offset : offset + len(data)] = data
        entry = offset // ENTRY
        # Of the control word there is the mask only.
        control = ENTRY * entry + 12
        self._table[control : control + 4] = bytes((self._table[control] & _MASKED, 0, 0, 0))
        self._tell(entry)

    def enable(self, enabled: bool) -> None:
        """Whether any of them is sent at all."""
        if enabled != self._enabled:
            self._enabled = enabled
            for vector in range(self.vectors):
                self._tell(vector)

    def _tell(self, vector: int) -> None:
        address, data, control = _VECTOR.unpack_from(self._table, ENTRY * vector)
        message = Message(address, data) if self._enabled and not control & _MASKED else None
        if message != self._told[vector]:
            self._told[vector] = message
            self._changed(vector, message)
