"""The account of what each domain has for itself alone: memory, processors, and further kinds. No I/O.

A domain gets all that it asks for or nothing, and what it has nobody else gets until it is released.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vambrace.errors import CapacityError, Conflict, UsageError

#: A processor's number, a colour's, a device's name.
Item = int | str

#: Holders that a refusal names, those that hold most first.
NAMED = 8
MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """Things of one kind, ``name`` in the plural. The items of a group are given together: siblings of one processor
    core, devices of one IOMMU group. With ``in_a_row`` a count of them is a count of groups that follow each other,
    the last ones that are free: ways of a cache."""

    name: str
    groups: tuple[tuple[Item, ...], ...]
    in_a_row: bool = False

    def __post_init__(self) -> None:
        items = self.items
        if len(set(items)) != len(items) or not all(self.groups):
            raise UsageError(f"{self.name}: an item is in one group, and a group has some")

    @classmethod
    def single(cls, name: str, items: Iterable[Item], *, in_a_row: bool = False) -> Kind:
        """A kind whose items are given one by one."""
        return cls(name, tuple((item,) for item in items), in_a_row)

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for group in self.groups for item in group)


@dataclass(frozen=True)
class Request:
    """``memory`` in bytes; of each kind at least so many as ``counts`` says, whichever, or those that are ``named``."""

    memory: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    named: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    #: How a refusal calls what is asked of a kind, where it is not what was named.
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """What one domain has. ``label`` is what people call it."""

    domain: str
    label: str
    memory: int
    items: Mapping[str, tuple[Item, ...]]

    def of(self, kind: str) -> tuple[Item, ...]:
        return self.items.get(kind, ())


class Ledger:
    """``memory`` bytes and the items of ``kinds``, to be given to domains."""

    def __init__(self, memory: int, kinds: Iterable[Kind] = ()) -> None:
        self.memory = memory
        self.kinds = {kind.name: kind for kind in kinds}
        self._shares: dict[str, Share] = {}

    @property
    def shares(self) -> tuple[Share, ...]:
        """In the order in which they were given."""
        return tuple(self._shares.values())

    def add(self, kind: Kind) -> None:
        """A further kind, of which nobody has anything yet. Raises ``UsageError``: there is one of this name."""
        if kind.name in self.kinds:
            raise UsageError(f"this host has its {kind.name} already")
        self.kinds[kind.name] = kind

    def share(self, domain: str) -> Share | None:
        return self._shares.get(domain)

    @property
    def memory_used(self) -> int:
        return sum(share.memory for share in self.shares)

    @property
    def memory_free(self) -> int:
        return max(0, self.memory - self.memory_used)

    def free(self, kind: str) -> tuple[Item, ...]:
        """The items that nobody has."""
        held = self._held(kind)
        return tuple(item for item in self._kind(kind).items if item not in held)

    def holder(self, kind: str, item: Item) -> Share | None:
        """Who has ``item``."""
        return next((share for share in self.shares if item in share.of(kind)), None)

    def reserve(self, domain: str, label: str, request: Request) -> Share:
        """All of ``request`` for ``domain``, which has nothing yet.

        Raises ``CapacityError``, in one line for all that is short: what is asked, what is free, who holds the rest;
        ``Conflict`` (it has a share), ``UsageError`` (a request that makes no sense). Nothing is changed then.
        """
        if domain in self._shares:
            raise Conflict(f"{label} has its share already", status=409)
        if request.memory < 0 or any(count < 0 for count in request.counts.values()):
            raise UsageError("a domain cannot ask for less than nothing")
        short = []
        if request.memory > self.memory_free:
            short.append(self._short_of_memory(request.memory))
        taken: dict[str, tuple[Item, ...]] = {}
        for name in sorted({*request.counts, *request.named}):
            count, named = request.counts.get(name, 0), request.named.get(name, ())
            taken[name] = self._pick(name, count, named)
            if len(taken[name]) < count or not set(named) <= set(taken[name]):
                short.append(self._short_of(name, count, named, request.words.get(name)))
        if short:
            raise CapacityError(
                f"{label} cannot be given {' and '.join(short)}", hint="destroy a Realm, or use a host with more"
            )
        share = Share(domain, label, request.memory, {name: items for name, items in taken.items() if items})
        self._shares[domain] = share
        return share

    def release(self, domain: str) -> None:
        """What ``domain`` has is free again; nothing happens where it has nothing."""
        self._shares.pop(domain, None)

    def _kind(self, name: str) -> Kind:
        if name not in self.kinds:
            raise UsageError(f"this host has no {name}", hint=f"it has {', '.join(self.kinds) or 'memory only'}")
        return self.kinds[name]

    def _held(self, kind: str) -> set[Item]:
        return {item for share in self.shares for item in share.of(kind)}

    def _pick(self, name: str, count: int, named: Sequence[Item]) -> tuple[Item, ...]:
        """Whole free groups: those with a named item, then others until there are ``count`` items, or all."""
        free = set(self.free(name))
        if self._kind(name).in_a_row and not named:
            return self._row(name, free, count)
        groups = [group for group in self._kind(name).groups if free.issuperset(group)]
        picked = [group for group in groups if not set(named).isdisjoint(group)]
        for group in groups:
            if sum(map(len, picked)) >= count:
                break
            if group not in picked:
                picked.append(group)
        items = self._kind(name).items
        return tuple(sorted((item for group in picked for item in group), key=items.index))

    def _row(self, name: str, free: set[Item], count: int) -> tuple[Item, ...]:
        """The last ``count`` groups that are free and follow each other, or none."""
        groups = self._kind(name).groups
        for first in range(len(groups) - count, -1, -1):
            items = tuple(item for group in groups[first : first + count] for item in group)
            if free.issuperset(items):
                return items
        return ()

    def _short_of_memory(self, memory: int) -> str:
        # Up and down: what is asked is never less than what is said to be free.
        asked, free = -(-memory // MIB), self.memory_free // MIB
        holders = {share.label: (share.memory, f"{share.memory // MIB} MiB") for share in self.shares if share.memory}
        return f"{asked} MiB of memory (free: {free} of {self.memory // MIB} MiB{_holders(holders)})"

    def _short_of(self, name: str, count: int, named: Sequence[Item], words: str | None) -> str:
        row = " in a row" if self._kind(name).in_a_row else ""
        asked = words or (", ".join(map(str, named)) if named else f"{count} {name}{row}")
        free, items = self.free(name), self._kind(name).items
        holders = {share.label: (len(share.of(name)), spell(share.of(name))) for share in self.shares if share.of(name)}
        which = f": {spell(free)}" if free else ""
        return f"{asked} (free: {len(free)} of {len(items)} {name}{which}{_holders(holders)})"


def _holders(holders: Mapping[str, tuple[int, str]]) -> str:
    """Who holds the rest: label → (how much, for the order; the same in words)."""
    most = sorted(holders.items(), key=lambda item: -item[1][0])
    said = [f"{label} holds {words}" for label, (_, words) in most[:NAMED]]
    if len(most) > NAMED:
        said.append(f"{len(most) - NAMED} others hold the rest")
    return "".join(f"; {part}" for part in said)


def spell(items: Iterable[Item]) -> str:
    """Items for people, as the kernel writes lists: ``1-3,7``."""
    numbers = sorted(item for item in items if isinstance(item, int))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ",".join([*words, *sorted(item for item in items if isinstance(item, str))])
