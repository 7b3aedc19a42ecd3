"""Which domain of a host has what for itself, as the host says, and as a picture (SVG, without a drawing library)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vambrace.client.said import text_of
from vambrace.errors import HostError
from vambrace.files import write_whole

Item = int | str

MIB = 1 << 20
WIDTH, LEFT, RIGHT, TOP = 760, 110, 20, 60
ROW, BAR, LINE = 64, 30, 22
#: Told apart by those who do not see all colours, too (Okabe and Ito, Color Universal Design).
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2")
FREE, SHARED = "#eeeeee", "#bbbbbb"
#: Items that a row shows one by one, at most.
CELLS = 64


@dataclass(frozen=True)
class Kind:
    """Things that are given to one domain alone, such as processors."""

    name: str
    total: tuple[Item, ...]
    free: tuple[Item, ...]


@dataclass(frozen=True)
class Owner:
    """What one domain has: ``memory`` in bytes, ``items`` by kind."""

    uuid: str
    name: str
    memory: int
    items: dict[str, tuple[Item, ...]]
    shared_processors: tuple[Item, ...]


@dataclass(frozen=True)
class Cache:
    """By what the last-level cache is divided (as a token says it), what is missing, and what of it is the host's."""

    partition: str
    reason: str
    host: tuple[Item, ...]


@dataclass(frozen=True)
class Partition:
    """A host's account. ``enforcement`` is ``cgroup`` or ``affinity``; ``reason`` is why it is not the former."""

    enforcement: str
    reason: str
    memory: int
    free: int
    kinds: tuple[Kind, ...]
    shared_processors: tuple[Item, ...]
    cache: Cache
    owners: tuple[Owner, ...]
    raw: dict[str, Any]

    @classmethod
    def decode(cls, value: Any) -> Partition:
        """Raises ``HostError`` where the answer is not one."""
        try:
            return cls(
                enforcement=text_of(value["enforcement"]),
                reason=text_of(value["reason"]),
                memory=_count(value["memory"]["total"]),
                free=_count(value["memory"]["free"]),
                kinds=tuple(
                    Kind(text_of(kind["name"]), _items(kind["total"]), _items(kind["free"])) for kind in value["kinds"]
                ),
                shared_processors=_items(value["shared_processors"]),
                cache=Cache(
                    text_of(value["cache"]["partition"]),
                    text_of(value["cache"]["reason"]),
                    _items(value["cache"]["host"]),
                ),
                owners=tuple(
                    Owner(
                        text_of(domain["uuid"]),
                        text_of(domain["name"]),
                        _count(domain["memory"]),
                        {text_of(kind): _items(items) for kind, items in domain["items"].items()},
                        _items(domain["shared_processors"]),
                    )
                    for domain in value["domains"]
                ),
                raw=value,
            )
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise HostError("the host's answer is not a partition", hint="is its vambrace older than yours?") from error


@dataclass(frozen=True)
class Verification:
    """What the host found: a line of ``findings`` for each overlap."""

    passed: bool
    findings: tuple[str, ...]
    domains: tuple[str, ...]
    threads: int
    descriptors: int
    enforcement: str
    raw: dict[str, Any]

    @classmethod
    def decode(cls, value: Any) -> Verification:
        """Raises ``HostError`` where the answer is not one, or says two things at once."""
        try:
            found = cls(
                passed=value["passed"] is True,
                findings=tuple(map(text_of, value["findings"])),
                domains=tuple(map(text_of, value["domains"])),
                threads=_count(value["threads"]),
                descriptors=_count(value["descriptors"]),
                enforcement=text_of(value["enforcement"]),
                raw=value,
            )
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise HostError("the host's answer is not a verification") from error
        if found.passed == bool(found.findings):
            raise HostError("the host's answer contradicts itself: what it has found, and whether it passed")
        return found


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _items(value: Any) -> tuple[Item, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_count(item) if isinstance(item, int) else text_of(item) for item in value)


def spelled(items: tuple[Item, ...]) -> str:
    """Items in their order, for people: three or more that follow each other as ``2-7`` or ``lab/2-7``."""
    words: list[str] = []
    at = 0
    while at < len(items):
        end = at + 1
        while end < len(items) and items[end] == _next(items[end - 1]):
            end += 1
        last = str(items[end - 1]).rpartition("/")[2]
        words += [f"{items[at]}-{last}"] if end - at > 2 else map(str, items[at:end])
        at = end
    return ", ".join(words) or "-"


def _next(item: Item) -> Item | None:
    """What follows 2 is 3, and what follows lab/2 is lab/3."""
    if isinstance(item, int):
        return item + 1
    name, _, number = item.rpartition("/")
    return f"{name}/{int(number) + 1}" if number.isascii() and number.isdigit() and len(number) < 10 else None


# The picture


def draw(path: Path, partition: Partition) -> None:
    """Writes ``picture`` into a file, whole or not at all."""
    write_whole(path, picture(partition).encode(), mode=0o644)


def picture(partition: Partition) -> str:
    """An SVG document: a bar of memory, a row of cells for each kind, one colour for each domain."""
    colours = {owner.uuid: COLOURS[number % len(COLOURS)] for number, owner in enumerate(partition.owners)}
    rows = [_memory(partition, colours)]
    rows += [_cells(kind, _who(partition, kind), colours) for kind in partition.kinds if kind.total]
    if partition.shared_processors:
        rows.append([*_shared(partition)])
    height = TOP + ROW * len(rows) + LINE * (len(partition.owners) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        '  font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="30" font-size="15">Who has what for itself alone</text>',
    ]
    for number, row in enumerate(rows):
        parts.append(f'<g transform="translate(0 {TOP + ROW * number})">')
        parts += [*row, "</g>"]
    parts += _legend(partition, colours, TOP + ROW * len(rows))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(x: float, width: float, colour: str, text: str, title: str) -> str:
    # Some 8 units a letter: a name that does not fit is in the legend.
    shown = escape(text) if len(text) * 8 <= width else ""
    return (
        f'<g><title>{escape(title)}</title><rect x="{x:.1f}" y="0" width="{width:.1f}" height="{BAR}" fill="{colour}"'
        f' stroke="white"/><text x="{x + width / 2:.1f}" y="{BAR / 2 + 5}" text-anchor="middle">{shown}</text></g>'
    )


def _label(text: str) -> str:
    return f'<text x="{LEFT - 10}" y="{BAR / 2 + 5}" text-anchor="end">{escape(text)}</text>'


def _memory(partition: Partition, colours: dict[str, str]) -> list[str]:
    total = max(1, partition.memory, sum(owner.memory for owner in partition.owners))
    parts, x = [_label("memory")], float(LEFT)
    spans = [(owner.name, owner.memory, colours[owner.uuid]) for owner in partition.owners]
    for name, size, colour in [*spans, ("free", partition.free, FREE)]:
        width = (WIDTH - LEFT - RIGHT) * size / total
        if size:
            parts.append(_box(x, width, colour, name, f"{name}: {size // MIB} MiB"))
        x += width
    return parts


def _who(partition: Partition, kind: Kind) -> Iterator[tuple[Item, Owner | None]]:
    holders = {item: owner for owner in partition.owners for item in owner.items.get(kind.name, ())}
    return ((item, holders.get(item)) for item in kind.total)


def _cells(kind: Kind, cells: Iterator[tuple[Item, Owner | None]], colours: dict[str, str]) -> list[str]:
    free = set(kind.free)
    shown: list[tuple[tuple[Item, ...], str, str]] = []  # items, the colour, whose they are
    for item, owner in cells:
        if owner is not None:
            look = colours[owner.uuid], owner.name
        else:
            look = (FREE, "free") if item in free else (SHARED, "the host")
        # Of many, those that follow each other and are one owner's are one box.
        if shown and len(kind.total) > CELLS and shown[-1][1:] == look:
            shown[-1] = ((*shown[-1][0], item), *look)
        else:
            shown.append(((item,), *look))
    width = (WIDTH - LEFT - RIGHT) / len(kind.total)
    parts, x = [_label(kind.name)], float(LEFT)
    for items, colour, title in shown:
        name = spelled(items)
        parts.append(_box(x, width * len(items), colour, name, f"{name}: {title}"))
        x += width * len(items)
    return parts


def _shared(partition: Partition) -> Iterator[str]:
    width = (WIDTH - LEFT - RIGHT) / len(partition.shared_processors)
    yield _label("shared")
    for number, cpu in enumerate(partition.shared_processors):
        names = ", ".join(owner.name for owner in partition.owners if cpu in owner.shared_processors) or "nobody now"
        yield _box(LEFT + number * width, width, SHARED, f"{cpu}: {names}", f"processor {cpu}: {names}")


def _legend(partition: Partition, colours: dict[str, str], top: int) -> Iterator[str]:
    lines: Sequence[tuple[str, str]] = [(colours[owner.uuid], owner.name) for owner in partition.owners]
    for number, (colour, text) in enumerate([*lines, (FREE, "free")]):
        y = top + LINE * number
        yield f'<rect x="{LEFT}" y="{y}" width="14" height="14" fill="{colour}"/>'
        yield f'<text x="{LEFT + 22}" y="{y + 12}">{escape(text)}</text>'
