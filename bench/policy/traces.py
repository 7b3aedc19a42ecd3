"""Page references to replay: synthetic ones, the same for the same seed, and recorded ones in small files.

A file, numbers little-endian:

    offset  bytes
    0       8      b"VBTRACE1"
    8       4      pages: every reference is below this number
    12      8      references
    20      ...    zlib stream of the references, 32 bits each: the difference to the one before, modulo 2^32
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, cycle, islice, repeat
from pathlib import Path

MAGIC = b"VBTRACE1"
_HEADER = struct.Struct("<8sIQ")
_MODULUS = 1 << 32
PAGES = 8192
REFERENCES = 200_000
#: Where recorded ones are.
TRACES = Path(__file__).parents[2] / "build" / "traces"


class TraceError(Exception):
    """A file that is no trace."""


@dataclass(frozen=True)
class Trace:
    """``references`` are page numbers, array('I'); all ``pages`` numbers below it occur."""

    name: str
    pages: int
    references: array[int]


def numbered(name: str, references: Iterable[int]) -> Trace:
    """Pages are numbered anew without gaps, neighbours stay in order: memory that is never touched does not count."""
    touched = references if isinstance(references, array) else array("I", references)
    numbers = {page: number for number, page in enumerate(sorted(set(touched)))}
    return Trace(name, len(numbers), array("I", map(numbers.__getitem__, touched)))


# --- files --------------------------------------------------------------------------------------------------------


def write(path: Path, trace: Trace) -> None:
    """The file is there as a whole or not at all."""
    before = chain([0], trace.references)
    steps = array("I", ((page - last) % _MODULUS for page, last in zip(trace.references, before, strict=False)))
    if sys.byteorder == "big":
        steps.byteswap()
    aside = path.with_name(f".{path.name}.new")
    header = _HEADER.pack(MAGIC, trace.pages, len(trace.references))
    aside.write_bytes(header + zlib.compress(steps.tobytes(), 6))
    aside.replace(path)


def read(path: Path) -> Trace:
    """The trace has the name of the file. Raises TraceError; OSError."""
    data = path.read_bytes()
    try:
        magic, pages, count = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise TraceError(f"{path} is no trace")
        steps = array("I", zlib.decompress(data[_HEADER.size :]))
    except (struct.error, zlib.error, ValueError) as error:
        raise TraceError(f"{path} is cut off or damaged: {error}") from error
    if sys.byteorder == "big":
        steps.byteswap()
    references = array("I", accumulate(steps, lambda page, step: (page + step) % _MODULUS))
    if len(references) != count or max(references, default=0) >= pages:
        raise TraceError(f"{path} does not have the references that it names")
    return Trace(path.stem, pages, references)


# --- synthetic ----------------------------------------------------------------------------------------------------


def popular(chance: random.Random, pages: Sequence[int], count: int, exponent: float = 0.99) -> list[int]:
    """Independent references; the popular pages lie anywhere among the ``pages``."""
    ranked = chance.sample(pages, len(pages))
    weights = list(accumulate(1 / rank**exponent for rank in range(1, len(ranked) + 1)))
    return chance.choices(ranked, cum_weights=weights, k=count)


def zipf(chance: random.Random) -> Iterable[int]:
    """A key-value store under YCSB's load: Zipf, 0.99."""
    return popular(chance, list(range(PAGES)), REFERENCES)


def loop(chance: random.Random) -> Iterable[int]:
    """All pages in order, again and again: larger than every window, and what LRU is worst at."""
    start = chance.randrange(PAGES)
    return islice(cycle(chain(range(start, PAGES), range(start))), REFERENCES)


def short_loop(chance: random.Random) -> Iterable[int]:
    """All pages once, then a loop over a fifth of them: larger than a window of 10 %, smaller than one of 25 %."""
    start = chance.randrange(PAGES - PAGES // 5)
    return chain(range(PAGES), islice(cycle(range(start, start + PAGES // 5)), REFERENCES - PAGES))


def phases(chance: random.Random) -> Iterable[int]:
    """Ten phases, each with 15 % of the pages in Zipf's order of its own."""
    everything = list(range(PAGES))
    size = REFERENCES // 10
    sets = [chance.sample(everything, PAGES * 15 // 100) for _ in range(10)]
    return chain.from_iterable(popular(chance, pages, size, 0.7) for pages in sets)


def mixed(chance: random.Random) -> Iterable[int]:
    """Zipf over one half, and now and then a scan of a piece of the other: queries and reports on one database."""
    half = PAGES // 2
    queries = iter(popular(chance, list(range(half)), REFERENCES))
    count, at = 0, 0
    while count < REFERENCES:
        run, scan = chance.randrange(1000, 4000), chance.randrange(200, 1200)
        yield from islice(queries, run)
        yield from (half + (at + step) % half for step in range(scan))
        at += scan
        count += run + scan


def uniform(chance: random.Random) -> Iterable[int]:
    """Nothing to be learnt: every policy's share of misses is that of the pages outside the window."""
    return (chance.randrange(PAGES) for _ in repeat(None, REFERENCES))


SYNTHETIC: dict[str, Callable[[random.Random], Iterable[int]]] = {
    "zipf": zipf,
    "loop": loop,
    "short-loop": short_loop,
    "phases": phases,
    "mixed": mixed,
    "uniform": uniform,
}


def synthetic(name: str, seed: int = 1) -> Trace:
    """Raises KeyError: no trace is called so."""
    return numbered(name, SYNTHETIC[name](random.Random(f"{name} {seed}")))


def recorded(folder: Path) -> list[Trace]:
    """All that lie in the folder, by name. Raises TraceError."""
    return [read(path) for path in sorted(folder.glob("*.trace"))]
