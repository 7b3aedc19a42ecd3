"""The conflict-timing probe: do pages of one supposed colour evict each other from the last-level cache, and pages of
other colours not? Only that makes colours of frames a partition; many caches hash addresses, and then they do not.

For each of many targets, pages at random, it is measured how long the target takes to read after

    near     pages that evict it from the private caches only: a hit of the last level
    idle     the same, and then a wait as long as it takes to walk the others: what anybody else evicts meanwhile
    same     pages of its colour, more than the last level has ways
    others   pages of all other colours, several times what the cache holds
    all      both: a miss

A target is slow or not, by a threshold between near and all. Colours are confirmed if targets are slow after same and
all, and not slow after near, idle and others, each in more than PURITY of all cases. The number of slow targets is
binomial, and its exact (Clopper-Pearson) bound must lie beyond: that colours are confirmed though one of these shares
lies on the wrong side has a chance of at most ERROR. All else is unconfirmed, with the reason.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import random
import statistics
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vambrace.errors import PartitionError
from vambrace.pager import PAGE_SIZE, _core
from vambrace.partition.colours import Colours, colours_of
from vambrace.partition.geometry import Cache, last_level
from vambrace.partition.placement import read_frames

TARGETS = 200
#: Readings of each target after each walk, of which the median counts.
READINGS = 3
ERROR = 1e-4
PURITY = 0.9
WALKS = ("near", "idle", "same", "others", "all")
#: What must be slow, and what must not.
SLOW = {"near": False, "idle": False, "same": True, "others": False, "all": True}
#: How often the cache's size is in the pages that are walked.
FILL = 4
#: A miss takes so many times as long as a hit, at least.
CONTRAST = 1.3
MAX_MEMORY = 4 << 30


@dataclass(frozen=True)
class Figures:
    """What was measured: after each walk, how many of ``targets`` were slow; medians in nanoseconds of a hit and a
    miss of the last level (of eight lines, the clock's own time among them); the lowest and highest frame used."""

    targets: int
    slow: dict[str, int]
    hit_ns: float
    miss_ns: float
    frames: tuple[int, int]

    def __str__(self) -> str:
        shares = ", ".join(f"{walk} {self.slow[walk]}" for walk in WALKS)
        return (
            f"slow of {self.targets} targets: {shares}; hit {self.hit_ns:.0f} ns, miss {self.miss_ns:.0f} ns; "
            f"frames {self.frames[0]:#x} to {self.frames[1]:#x}"
        )


@dataclass(frozen=True)
class Verdict:
    """``reason`` is one line; ``figures`` are None where nothing could be measured."""

    confirmed: bool
    reason: str
    figures: Figures | None = None


class Memory(Protocol):
    """Pages to measure on."""

    @property
    def frames(self) -> Sequence[int]:
        """The frame number of each page."""

    def access_ns(self, target: int, pages: array[int], rounds: int, wait_ns: int) -> int:
        """How long it takes to read ``target`` when ``pages`` have been read ``rounds`` times, and ``wait_ns`` have
        passed."""


@dataclass(frozen=True)
class Plan:
    """What to walk for a geometry: ``private`` is the number of colours of the largest private cache, ``depth`` how
    many lines of one set all private caches hold together. Raises PartitionError: the probe could not tell."""

    colours: Colours
    private: int
    depth: int
    ways: int

    def __post_init__(self) -> None:
        if self.private >= self.colours.count:
            raise PartitionError(
                f"a private cache has {self.private} colours, and the last level {self.colours.count}: which of both "
                "evicts a page cannot be told"
            )

    @property
    def same(self) -> int:
        """Pages of one colour that evict another one from all levels, also where it is chance which line goes."""
        return 2 * (self.ways + self.depth)

    @property
    def fill(self) -> int:
        return self.colours.count * FILL * self.ways

    @property
    def pages(self) -> int:
        """So many pages are needed, of all colours alike."""
        return max(self.fill, self.colours.count * 2 * self.same)


def plan_for(caches: Sequence[Cache]) -> Plan:
    """Raises PartitionError: this cache has no colours, or the probe could not tell."""
    last = last_level(tuple(caches))
    one_cpu = _cpu_of(last)
    private = [cache for cache in caches if cache.level < last.level and one_cpu in cache.cpus]
    return Plan(
        colours_of(last),
        max([1, *(cache.sets * cache.line // PAGE_SIZE for cache in private)]),
        sum(cache.ways for cache in private),
        last.ways,
    )


def _cpu_of(last: Cache) -> int:
    """One that shares this cache; any, where it is configured."""
    return min(last.cpus or os.sched_getaffinity(0))


def probe(caches: Sequence[Cache], *, targets: int = TARGETS, seed: int | None = None) -> Verdict:
    """Measures on this machine, on memory of its own, several times as much as its cache, and on one CPU, for about
    half a minute. Every obstacle is an unconfirmed verdict."""
    try:
        plan = plan_for(caches)
        if plan.pages * PAGE_SIZE > MAX_MEMORY:
            raise PartitionError(f"the probe would need {plan.pages * PAGE_SIZE >> 20} MiB of memory")
        with _own_memory(plan.pages) as memory, _on_one_cpu(_cpu_of(last_level(tuple(caches)))):
            figures = measure(memory, plan, targets=targets, seed=seed)
            if memory.now() != memory.frames:
                return Verdict(False, "the kernel moved pages while they were measured", figures)
        return decide(figures, virtual=virtual_machine())
    except PartitionError as error:
        return Verdict(False, error.message)


def measure(
    memory: Memory, plan: Plan, *, targets: int = TARGETS, readings: int = READINGS, seed: int | None = None
) -> Figures:
    """Raises PartitionError: too few pages of some colour."""
    chance = random.Random(seed)
    frames = memory.frames
    colours = [plan.colours.of(frame) for frame in frames]
    by_colour: dict[int, list[int]] = {}
    for page, colour in enumerate(colours):
        by_colour.setdefault(colour, []).append(page)
    usable = [colour for colour, pages in by_colour.items() if len(pages) > plan.same]
    if len(by_colour) < plan.colours.count or len(usable) < 2:
        raise PartitionError("this machine gave too few pages of some colours")
    order = list(range(len(frames)))
    chance.shuffle(order)
    times: dict[str, list[float]] = {walk: [] for walk in WALKS}
    lasted: list[int] = []
    for _ in range(targets):
        colour = chance.choice(usable)
        target, *same = chance.sample(by_colour[colour], plan.same + 1)
        near = _near(plan, frames[target], by_colour, chance)
        turn = chance.randrange(len(order))
        others = [page for page in order[turn:] + order[:turn] if colours[page] != colour][: plan.fill]
        walks = {
            "near": (array("I", near), 2, 0),
            "others": (array("I", others), 1, 0),
            "same": (array("I", same), 4, 0),
            "all": (array("I", others + same), 2, 0),
            "idle": (array("I", near), 2, int(statistics.median(lasted)) if lasted else 1),
        }
        found: dict[str, list[int]] = {walk: [] for walk in WALKS}
        for _ in range(readings):
            for walk, (pages, rounds, wait) in walks.items():
                found[walk].append(memory.access_ns(target, pages, rounds, wait))
        started = time.monotonic_ns()
        memory.access_ns(target, walks["others"][0], 1, 0)
        lasted.append(time.monotonic_ns() - started)
        for walk in WALKS:
            times[walk].append(statistics.median(found[walk]))
    hit, miss = statistics.median(times["near"]), statistics.median(times["all"])
    threshold = math.sqrt(max(hit, 1) * max(miss, 1))
    return Figures(
        targets,
        {walk: sum(ns > threshold for ns in times[walk]) for walk in WALKS},
        hit,
        miss,
        (min(frames), max(frames)),
    )


def decide(figures: Figures, *, virtual: str = "") -> Verdict:
    """The verdict on what was measured; ``virtual`` tells of the virtual machine that this is, if it is one.

    What contradicts the colours is looked for in the order of what explains it: noise makes targets slow, never fast.
    """

    def wrong(walk: str) -> int:
        return figures.targets - figures.slow[walk] if SLOW[walk] else figures.slow[walk]

    hashed = "addresses are hashed, or frame numbers are not the hardware's"
    reasons = {
        "near": "too noisy: what should be in the cache is often read as slowly as what is not",
        "all": "too noisy: what should be evicted is often read as fast as what is not",
        "same": f"pages of one colour do not evict each other: {hashed}",
        "idle": "too noisy: others use the cache, and evict pages while the probe only waits",
        "others": f"pages of other colours evict a page: {hashed}",
    }
    if figures.miss_ns < CONTRAST * figures.hit_ns:
        found = "no cache can be seen: what should be evicted is read as fast as what should not"
    elif against := [walk for walk in reasons if wrong(walk) > (1 - PURITY) * figures.targets]:
        found = reasons[against[0]]
    elif open_ := [
        walk for walk in reasons if upper_bound(wrong(walk), figures.targets, ERROR / len(WALKS)) > 1 - PURITY
    ]:
        found = (
            f"not decided: {figures.targets} targets, of which {wrong(open_[0])} go against the colours, are too few"
        )
    elif virtual:
        found = "the figures fit, but frames of a virtual machine are not the hardware's, and may become others"
    else:
        return Verdict(True, "pages of one colour evict each other, and pages of other colours do not", figures)
    return Verdict(False, f"{found}; this is a virtual machine ({virtual})" if virtual else found, figures)


def upper_bound(count: int, of: int, error: float) -> float:
    """The share of which ``count`` or fewer hits in ``of`` trials have a chance of ``error`` only (Clopper-Pearson)."""
    low, high = count / of, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(count, of, middle) > error:
            low = middle
        else:
            high = middle
    return high


def _at_most(count: int, of: int, share: float) -> float:
    """The chance of ``count`` or fewer hits in ``of`` trials."""
    if share >= 1:
        return float(count >= of)
    term = of * math.log1p(-share)
    total = 0.0
    for hits in range(count + 1):
        total += math.exp(term)
        if hits < of:
            term += math.log(of - hits) - math.log(hits + 1) + math.log(share or 1e-300) - math.log1p(-share)
    return min(total, 1.0)


def _near(plan: Plan, frame: int, by_colour: dict[int, list[int]], chance: random.Random) -> list[int]:
    """Pages that share the target's sets in the private caches, but not in the last level, where they fill none."""
    colour = plan.colours.of(frame)
    near: list[int] = []
    for other in range(colour % plan.private, plan.colours.count, plan.private):
        if other != colour:
            pages = by_colour[other]
            near += chance.sample(pages, min(len(pages), max(1, plan.ways // 4)))
    chance.shuffle(near)
    return near[: 4 * max(1, plan.depth)]


# --- this machine --------------------------------------------------------------------------------------------


class _OwnMemory:
    """Zeroed pages of this process."""

    def __init__(self, mapping: mmap.mmap, pages: int) -> None:
        self._mapping = mapping
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._pages = pages
        self.frames = self.now()

    def now(self) -> list[int]:
        return read_frames(os.getpid(), self._address, self._pages)

    def access_ns(self, target: int, pages: array[int], rounds: int, wait_ns: int) -> int:
        return _core.time_walk(self._mapping, target, pages, rounds, wait_ns)


@contextmanager
def _own_memory(pages: int) -> Iterator[_OwnMemory]:
    mapping = mmap.mmap(-1, pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
        for offset in range(0, len(mapping), PAGE_SIZE):
            mapping[offset] = 0
        yield _OwnMemory(mapping, pages)
    finally:
        mapping.close()


@contextmanager
def _on_one_cpu(cpu: int) -> Iterator[None]:
    """This thread stays on ``cpu``, or on one that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu if cpu in before else min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def virtual_machine(root: Path = Path("/")) -> str:
    """What shows that this is a virtual machine, whose frame numbers are not the hardware's; empty: nothing does."""
    signs = {
        "proc/cpuinfo": ("hypervisor",),
        "sys/class/dmi/id/sys_vendor": ("QEMU", "VMware", "Xen", "innotek", "Parallels"),
        "sys/class/dmi/id/product_name": ("KVM", "Virtual", "HVM domU"),
        "sys/hypervisor/type": ("xen",),
        "proc/device-tree/compatible": ("linux,dummy-virt",),
        "proc/device-tree/hypervisor/compatible": ("xen", "kvm", "linux,", "gunyah"),
    }
    for name, words in signs.items():
        try:
            text = (root / name).read_bytes()[: 1 << 20].decode("ascii", "replace")
        except OSError:
            continue
        for word in words:
            if word in text:
                return f"{word!r} in /{name}"
    return ""
