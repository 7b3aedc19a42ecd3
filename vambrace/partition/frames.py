"""Which page frames processes have, and whether two have the same one: root only.

A domain *holds* a frame if its process has it in anonymous memory, or in a mapping that is shared and writable. Nobody
else may map such a frame, not even to read it. What processes have in common by right, pages of program files that
none of them writes and the page of zeros, is held by nobody.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.partition.pagemap import FILE, GUARD, ONCE, PAGE, PRESENT, RIGHT, SWAPPED, Entries, PageMap

#: Pages whose entries are read at once.
BATCH = 1 << 15
#: Frames of one table: with 4096-byte pages 1 GiB, and the table has 512 KiB.
TABLE_BITS = 18
#: Frames of one finding that are remembered, to see whether they are there again.
REMEMBERED = 1 << 16
#: A frame that one process has just given back may be another's at once, while page maps are read one after the other:
#: what is found must be found so often.
ROUNDS = 3
PAUSE = 0.2

#: (domain, domain or what else is wrong) → frames, or pages where there is no frame.
Suspects = dict[tuple[str, str], set[int]]
ELSEWHERE = "mapped by another process as well"
SWAPPED_OUT = "swapped out"
NONE = "not to be seen"


def check(domains: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], int]:
    """What is wrong with the frames of ``domains``, each given by its processes: (domain, domain) or (domain, what) →
    number of frames. A process that has ended meanwhile has none.

    Raises ``PartitionError``: frame numbers are not shown.
    """
    zero = _zero_frame()
    found = _look(domains, zero)
    for _ in range(ROUNDS - 1):
        if not found:
            break
        time.sleep(PAUSE)
        again = _look(domains, zero)
        found = {key: both for key, frames in found.items() if (both := frames & again.get(key, set()))}
    return {key: len(frames) for key, frames in found.items()}


def _look(domains: Mapping[str, Sequence[int]], zero: int) -> Suspects:
    """One round: every process's page map is read once."""
    suspects: Suspects = defaultdict(set)
    names = list(domains)
    owners = Owners()
    read_only: list[tuple[int, array[int]]] = []
    for number, (name, pids) in enumerate(domains.items(), 1):
        seen = alive = False
        for pid in pids:
            alive = alive or Path(f"/proc/{pid}/maps").exists()
            for held, others, swapped, frames in _entries(pid, zero):
                seen = seen or bool(held)
                for frame, other in owners.take(number, held):
                    _remember(suspects, (names[other - 1], name), frame)
                for kind, values in ((ELSEWHERE, others), (SWAPPED_OUT, swapped)):
                    for value in values:
                        _remember(suspects, (name, kind), value)
                if frames:
                    read_only.append((number, frames))
        if alive and not seen and any(_has_memory(pid) for pid in pids):
            suspects[name, NONE].add(0)
    for number, frames in read_only:
        for frame in frames:
            if (other := owners.of(frame)) not in (0, number):
                first, second = sorted((number, other))
                _remember(suspects, (names[first - 1], names[second - 1]), frame)
    return suspects


def _remember(suspects: Suspects, key: tuple[str, str], value: int) -> None:
    if len(suspects[key]) < REMEMBERED:
        suspects[key].add(value)


class Owners:
    """Who holds each frame: tables of 16-bit numbers, made where there are frames. 0 is nobody."""

    def __init__(self) -> None:
        self._tables: dict[int, array[int]] = {}

    def take(self, owner: int, frames: Sequence[int]) -> list[tuple[int, int]]:
        """``frames``, in rising order, are ``owner``'s; returns those that are another's, and whose."""
        taken = []
        start = 0
        while start < len(frames):
            number = frames[start] >> TABLE_BITS
            first = number << TABLE_BITS
            end = bisect_left(frames, first + (1 << TABLE_BITS), start)
            if number not in self._tables:
                self._tables[number] = array("H", bytes(2 << TABLE_BITS))
            table = self._tables[number]
            for frame in frames[start:end]:
                other = table[frame - first]
                if other != owner:
                    if other:
                        taken.append((frame, other))
                    else:
                        table[frame - first] = owner
            start = end
        return taken

    def of(self, frame: int) -> int:
        table = self._tables.get(frame >> TABLE_BITS)
        return table[frame & ((1 << TABLE_BITS) - 1)] if table else 0


def _entries(pid: int, zero: int) -> Iterator[tuple[list[int], list[int], list[int], array[int]]]:
    """For each batch of pages of ``pid``: frames that it holds, in order; those of them that are mapped more than once;
    pages that are swapped out; frames that it only reads. Nothing once the process has ended."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        pagemap = PageMap(pid)
    except (FileNotFoundError, ProcessLookupError):
        return
    except OSError as error:
        raise PartitionError(f"page frame numbers cannot be read: {error.strerror}", hint=RIGHT) from error
    with pagemap:
        for first, pages, shared, written in _mappings(maps):
            for start in range(first, first + pages, BATCH):
                try:
                    entries = pagemap.read(start, min(BATCH, first + pages - start))
                except OSError:
                    return
                if not entries.nothing():
                    yield _sort(entries, start, shared, written, zero)


def _mappings(maps: str) -> Iterator[tuple[int, int, bool, bool]]:
    """First page, number of pages, whether shared, whether writable, of each mapping of ``/proc/PID/maps``."""
    for line in maps.splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith(("[v", "[sigpage")):
            continue  # the kernel's own, in every process: vdso, vvar, vsyscall
        start, end = (int(word, 16) // PAGE for word in words[0].split("-"))
        yield start, end - start, words[1][3] == "s", words[1][1] == "w"


def _sort(
    entries: Entries, start: int, shared: bool, written: bool, zero: int
) -> tuple[list[int], list[int], list[int], array[int]]:
    """The entries of pages from ``start`` on; all in C but for what there should be none of."""
    tops, frames = entries.tops, entries.frames()

    def chosen(condition: bytes) -> Iterator[int]:
        return compress(frames, tops.translate(condition))

    held = sorted(chosen(_HELD_SHARED if shared and written else _HELD_PRIVATE if not shared else _NOTHING))
    elsewhere = []
    if not shared:
        if zero in held[bisect_left(held, zero) : bisect_left(held, zero) + 1]:
            held = [frame for frame in held if frame != zero]
        elsewhere = [frame for frame in chosen(_PRIVATE_TWICE) if frame != zero]
    elif written:
        elsewhere = list(chosen(_SHARED_TWICE))
    swapped = list(compress(range(start, start + len(tops)), tops.translate(_IN_SWAP)))
    read = array("Q", chosen(_FILE_PAGE if not shared else _NOTHING if written else _ANY))
    return held, elsewhere, swapped, read


def _condition(test: int, value: int) -> bytes:
    """A table for ``bytes.translate``: 1 where the bits of ``test`` are as in ``value``."""
    return bytes(1 if top & test == value else 0 for top in range(256))


_NOTHING = bytes(256)
_ANY = _condition(PRESENT, PRESENT)
_HELD_PRIVATE = _condition(PRESENT | FILE, PRESENT)
_HELD_SHARED = _ANY
_FILE_PAGE = _condition(PRESENT | FILE, PRESENT | FILE)
_PRIVATE_TWICE = _condition(PRESENT | FILE | ONCE, PRESENT)
# Without the file bit it is a device's memory, which the kernel does not count mappings of.
_SHARED_TWICE = _condition(PRESENT | FILE | ONCE, PRESENT | FILE)
_IN_SWAP = _condition(PRESENT | SWAPPED | GUARD, SWAPPED)


def _has_memory(pid: int) -> bool:
    """Whether there is a process with memory of its own: not a thread of the kernel, not one that ends."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
    except OSError:
        return False


def _zero_frame() -> int:
    """The frame of the page of zeros, which the kernel maps where memory was read and never written."""
    with mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1  # so that the other is not part of a huge page of zeros
        if memory[PAGE]:
            raise AssertionError
        try:
            with PageMap(os.getpid()) as pagemap:
                frame = pagemap.read(_address(memory) // PAGE + 1, 1).frames()[0]
        except OSError as error:
            raise PartitionError(f"page frame numbers cannot be read: {error.strerror}", hint=RIGHT) from error
    if not frame:
        raise PartitionError("the kernel hides page frame numbers", hint=RIGHT)
    return frame


def _address(memory: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
