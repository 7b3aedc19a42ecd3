"""Cache colours: which page frames can meet in the last-level cache, and which domain has which of them.

A cache that picks the set by an address's low bits puts a page's lines into sets × line / page size groups of sets: the
page's colour, the low bits of its frame number. Pages of different colours never evict each other. Whether a cache
really does so, ``conflict`` measures; many hash the address first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vambrace.errors import CapacityError, PartitionError, UsageError
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

    def least(self, pages: int, frames: int) -> int:
        """How many colours a domain of so many pages needs, on a machine with so many frames of all colours in
        equal parts. Raises PartitionError: not even all are enough."""
        need = -(-pages * self.count // frames) if frames > 0 else self.count + 1
        if need > self.count:
            raise PartitionError(f"{pages} pages do not fit into {frames} frames, whatever their colour")
        return max(1, need)


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


class ColourLedger:
    """Which domain has which colours of a machine; none is ever two domains'."""

    def __init__(self, colours: Colours) -> None:
        self.colours = colours
        self._held: dict[str, tuple[int, ...]] = {}

    @property
    def free(self) -> tuple[int, ...]:
        taken = {colour for held in self._held.values() for colour in held}
        return tuple(colour for colour in range(self.colours.count) if colour not in taken)

    @property
    def held(self) -> Mapping[str, tuple[int, ...]]:
        """The colours of each domain, in order."""
        return dict(self._held)

    def assign(self, domain: str, count: int) -> tuple[int, ...]:
        """The lowest ``count`` free colours, the domain's until ``release``. All or nothing.

        Raises CapacityError: not so many are free; UsageError: the domain has some, or none are asked for.
        """
        if count < 1:
            raise UsageError(f"domain {domain}: {count} colours cannot be asked for")
        return self.take(domain, self._lowest(domain, count))

    def take(self, domain: str, colours: Iterable[int]) -> tuple[int, ...]:
        """These very colours: those of a domain that was running before this ledger was. All or nothing.

        Raises CapacityError: one is held; UsageError: there is no such colour, or the domain has some.
        """
        wanted = tuple(sorted(set(colours)))
        if domain in self._held:
            raise UsageError(f"domain {domain} has its colours already")
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.colours.count:
            raise UsageError(f"domain {domain}: colours are 0 to {self.colours.count - 1}")
        for other, held in self._held.items():
            if both := set(wanted) & set(held):
                raise CapacityError(f"domain {domain}: colour {min(both)} is held by {other}; {self._state()}")
        self._held[domain] = wanted
        return wanted

    def release(self, domain: str) -> None:
        """All of a domain's colours, if it has any, are free again. Its memory must be gone."""
        self._held.pop(domain, None)

    def _lowest(self, domain: str, count: int) -> tuple[int, ...]:
        free = self.free
        if count > len(free):
            raise CapacityError(f"domain {domain} wants {count} cache colours; {self._state()}")
        return free[:count]

    def _state(self) -> str:
        holders = ", ".join(f"{name} holds {len(held)}" for name, held in sorted(self._held.items()))
        return f"of {self.colours.count}, {len(self.free)} are free" + (f"; {holders}" if holders else "")
