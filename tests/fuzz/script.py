"""A fuzzer's bytes read as choices, from the front, so that a change of some bytes changes few of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: Numbers at which code changes its mind.
EDGES = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 255, 256, 257, 511, 512, 513, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF)
EDGES += (0x1_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, 0xFFFF_FFFE, 0xFFFF_FFFF)


class Finding(AssertionError):
    """What must never be."""


def demand(condition: object, what: str) -> None:
    if not condition:
        raise Finding(what)


class Script:
    """Once the bytes are used up, every choice is the first one and every number 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        """Fewer bytes at the end."""
        part = self._data[self._at : self._at + length]
        self._at += length
        return part

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def number(self, length: int = 1) -> int:
        """Unsigned, of so many bytes."""
        return int.from_bytes(self.take(length), "little")

    def below(self, end: int) -> int:
        return self.number() % end

    def of(self, choices: Sequence[T]) -> T:
        """One of at most 256."""
        return choices[self.number() % len(choices)]

    def edge(self) -> int:
        """A number of 32 bits: an edge for most values of the first byte, else what the next four say."""
        first = self.number()
        return EDGES[first % len(EDGES)] if first < 224 else self.number(4)

    def text(self, most: int) -> bytes:
        """Bytes with their length before them."""
        return self.take(self.below(most + 1))
