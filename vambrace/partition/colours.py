"""Cache colours: which page frames can meet in the last-level cache.

A cache that picks the set by an address's low bits puts a page's lines into sets × line / page size groups of sets: the
page's colour, the low bits of its frame number. Pages of different colours never evict each other. Whether a cache
really does so, ``conflict`` measures; many hash the address first. Who has which of them, ``ledger`` knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from vambrace.errors import PartitionError
from vambrace.partition.geometry import Cache

PAGE_SIZE = 4096
#: More than any cache has: its ways would be of 256 MiB.
MAX_COLOURS = 1 << 16


@dataclass(frozen=True)
class Colours:
    """The colours 0 … count − 1; ``count`` is a power of two, at least 2. Raises PartitionError."""

    count: int

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MAX_COLOURS or self.count & (self.count - 1):
            raise PartitionError(f"{self.count} colours cannot be")

    @property
    def bits(self) -> int:
        """How many bits of a frame number tell the colour: the lowest."""
        return self.count.bit_length() - 1

    def of(self, frame: int) -> int:
        """The colour of a page frame, by its number (physical address / page size)."""
        return frame & (self.count - 1)

    def part(self, percent: int) -> int:
        """How many colours are at least so much of the cache."""
        return max(1, -(-self.count * percent // 100))

    def least(self, pages: int, frames: int) -> int:
        """How many colours a domain of so many pages needs, on a machine with so many frames for domains, of all
        colours in about equal parts: a quarter more than the pages fill. All, where there is no saying."""
        need = -(-pages * self.count * 5 // (frames * 4)) if frames > 0 else self.count
        return max(1, min(self.count, need))


def colours_of(cache: Cache, page_size: int = PAGE_SIZE) -> Colours:
    """Raises PartitionError with the reason why this cache has no colours."""
    way = cache.sets * cache.line
    if cache.sets == 1:
        raise PartitionError(f"the level {cache.level} cache is fully associative: any two pages meet in it")
    if cache.sets & (cache.sets - 1):
        raise PartitionError(
            f"the level {cache.level} cache has {cache.sets} sets, no power of two: it hashes addresses, or is cut in "
            "slices, and has no colours",
            hint="if a slice's geometry is known and its addresses are not hashed, configure that",
        )
    if way <= page_size:
        raise PartitionError(
            f"a way of the level {cache.level} cache has {way} bytes, no more than a page: all pages have one colour"
        )
    return Colours(way // page_size)
