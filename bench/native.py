"""What the encrypted window costs on this machine, without any emulation, against a bound and against swap.

Rows (docs/performance.md): ``native/random-fault/CIPHER`` and ``native/sequential-page/CIPHER`` against the bound,
``native/cpu-per-fault/CIPHER``, ``native/two-threads`` over one, ``native/zipf/PERCENT`` against the ideal,
``native/random-fault-vs-swap`` and ``native/sequential-page-vs-swap``, ``native/load`` and ``native/raise`` in MiB/s.
Medians of ``VAMBRACE_BENCH_ROUNDS`` (5) rounds, in each of which everything runs once.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable
from pathlib import Path

from bench.parts.core import compile_with_core, need_window
from bench.parts.swap import Limit, Swap, zram
from bench.policy.policies import ONLINE, RIVALS, misses
from bench.policy.traces import popular
from bench.report import Report, Unavailable, rounds
from vambrace.pager import Window, window_pages

ROUNDS = rounds(5)
CIPHERS = ("aes-256-gcm", "sm4-gcm")
#: 128 MiB, of which 15 MiB may be plaintext.
PAGES, PERCENT = 32768, 88
ACCESSES = 60_000
#: The first is run; the second adds what AES-256-XTS would take, as dm-crypt uses it.
SWAP, SWAP_AND_CIPHER = "zram", "zram and AES-256-XTS, added"
#: Room for the program itself where swap limits it, in bytes.
PROGRAM = 2 << 20

Seconds = dict[str, float]


def run(report: Report) -> None:
    """Raises Unavailable: the kernel cannot move pages (before Linux 6.8), or there is no compiler."""
    need_window()
    with tempfile.TemporaryDirectory() as folder:
        bench = Native(Path(folder))
        ciphers = [cipher for cipher in CIPHERS if bench.has(cipher)]
        faults(report, bench, ciphers)
        threads(report, bench)
        popular_pages(report, bench)
        swapped(report, bench)
    bulk(report)


class Native:
    """The program, its traces, and what it said. Raises Unavailable: no compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "faults"
        compile_with_core("faults.c", self._program)
        chance = random.Random(1)
        self.trace("random", (chance.randrange(PAGES) for _ in range(ACCESSES)))
        self.trace("other", (chance.randrange(PAGES) for _ in range(ACCESSES)))
        self.trace("sequential", (page for _ in range(3) for page in range(PAGES)))

    def trace(self, name: str, references: Iterable[int]) -> None:
        (self._folder / name).write_bytes(array("I", references).tobytes())

    def has(self, cipher: str) -> bool:
        return self._run("cipher", cipher, PAGES, PERCENT, ["random"]).returncode == 0

    def __call__(
        self,
        mode: str,
        *traces: str,
        cipher: str = CIPHERS[0],
        pages: int = PAGES,
        percent: int = PERCENT,
        limit: Limit | None = None,
    ) -> Seconds:
        """What the program measured. Raises RuntimeError with what it said."""
        result = self._run(mode, cipher, pages, percent, traces, limit)
        if result.returncode:
            raise RuntimeError(result.stderr.strip() or f"{mode} ended with {result.returncode}")
        measured: Seconds = json.loads(result.stdout)
        return measured

    def _run(
        self,
        mode: str,
        cipher: str,
        pages: int,
        percent: int,
        traces: Iterable[str],
        limit: Limit | None = None,
    ) -> subprocess.CompletedProcess[str]:
        paths = [str(self._folder / name) for name in traces]
        command = [str(self._program), mode, cipher, str(pages), str(percent), *paths]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=limit.enter if limit else None,  # noqa: PLW1509
        )


def per_miss(measured: Seconds) -> float:
    """Microseconds."""
    return measured["seconds"] / max(measured["misses"], 1) * 1e6


def per_access(measured: Seconds) -> float:
    """Microseconds."""
    return measured["seconds"] / measured["accesses"] * 1e6


def faults(report: Report, bench: Native, ciphers: list[str]) -> None:
    """One random fault and one sequential page, against the naive handler without a cipher plus a cipher's own time."""
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for _ in range(ROUNDS):
        naive = {"random": per_miss(bench("naive", "random")), "sequential": per_access(bench("naive", "sequential"))}
        for cipher in ciphers:
            own = per_miss(bench("cipher", "random", cipher=cipher))
            scattered = bench("engine", "random", cipher=cipher)
            note(f"random-fault/{cipher}", per_miss(scattered))
            note(f"random-fault/{cipher}/bound", naive["random"] + own)
            note(f"cpu-per-fault/{cipher}", scattered["cpu"] / scattered["misses"] * 1e6)
            note(f"sequential-page/{cipher}", per_access(bench("engine", "sequential", cipher=cipher)))
            note(f"sequential-page/{cipher}/bound", naive["sequential"] + own)
    for cipher in ciphers:
        for name in ("random-fault", "sequential-page"):
            ours, bound = figures[f"{name}/{cipher}"], figures[f"{name}/{cipher}/bound"]
            ratios = [mine / theirs for mine, theirs in zip(ours, bound, strict=True)]
            report.add(f"native/{name}/{cipher}", "bound", statistics.median(bound), "µs")
            report.add_rounds(f"native/{name}/{cipher}", "window", ours, "µs", ratios, "bound")
        name = f"cpu-per-fault/{cipher}"
        report.add(f"native/{name}", "window", statistics.median(figures[name]), "µs")


def threads(report: Report, bench: Native) -> None:
    """Two threads on two CPUs, each with its own handler, over one; and the same where they only move pages: what no
    window can do without."""
    if len(os.sched_getaffinity(0)) < 2:
        print("native/two-threads: this machine has one CPU", file=sys.stderr)
        return
    subjects = {"window": ("engine", "misses", "faults/s"), "UFFDIO_MOVE alone": ("move", "accesses", "moves/s")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, (mode, counted, _) in subjects.items():
            one, two = bench(mode, "random"), bench(mode, "random", "other")
            rate = two[counted] / two["seconds"]
            found[name].append((rate, rate * one["seconds"] / one[counted]))
    for name, (_, _, unit) in subjects.items():
        rates, ratios = zip(*found[name], strict=True)
        report.add_rounds("native/two-threads", name, rates, unit, ratios, "one thread")


def popular_pages(report: Report, bench: Native) -> None:
    """Zipf(0.99) over a whole zone, against the ideal: memory, and a bound's time for each miss of the best policy."""
    references = array("I", popular(random.Random(3), range(PAGES), 1_000_000))
    bench.trace("zipf", references)
    rivals = [ONLINE[name] for name in RIVALS]
    fewest = {
        percent: min(misses(policy(window_pages(PAGES, percent)), references) for policy in rivals)
        for percent in (50, 80)
    }
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        bound = per_miss(bench("naive", "random")) + per_miss(bench("cipher", "random"))
        memory = bench("engine", "zipf", percent=0)["seconds"]
        for percent, missed in fewest.items():
            # The first touch of a page that was filled and evicted is a miss to every policy, as it is to ours.
            measured = bench("engine", "zipf", percent=percent)["seconds"]
            values.setdefault(f"zipf/{percent}", []).append(measured)
            ratios.setdefault(f"zipf/{percent}", []).append(measured / (memory + missed * bound / 1e6))
    for name, found in values.items():
        report.add_rounds(f"native/{name}", "window", found, "s", ratios[name], "ideal")


def swapped(report: Report, bench: Native) -> None:
    """The same accesses on swap in compressed memory, of which this machine's kernel encrypts nothing."""
    try:
        with zram(PAGES * 4096 * 2) as swap:
            compare_swap(report, bench, swap)
    except Unavailable as reason:
        print(f"native/*-vs-swap: not on this machine: {reason}", file=sys.stderr)


def compare_swap(report: Report, bench: Native, swap: Swap) -> None:
    names = ("random-fault", "sequential-page")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with Limit(window_pages(PAGES, PERCENT) * 4096 + PROGRAM) as limit:
        for _ in range(ROUNDS):
            xts = per_access(bench("xts", "random"))
            swap.read_ahead(0)
            scattered = per_miss(bench("swap", "random", limit=limit))
            in_order = []
            for cluster in (0, 3):
                swap.read_ahead(cluster)
                in_order.append(per_access(bench("swap", "sequential", limit=limit)))
            ours = (per_miss(bench("engine", "random")), per_access(bench("engine", "sequential")))
            for name, theirs, mine in zip(names, (scattered, min(in_order)), ours, strict=True):
                for against, added in ((SWAP, 0.0), (SWAP_AND_CIPHER, xts)):
                    found.setdefault((name, against), []).append((theirs + added, (theirs + added) / mine))
    for (name, against), pairs in found.items():
        times, ratios = zip(*pairs, strict=True)
        report.add_rounds(
            f"native/{name}-vs-swap", against, times, "µs", ratios, "window (above 1: swap is slower)"
        )


def bulk(report: Report) -> None:
    """Loading a guest, and raising a percentage when all of it is plaintext."""
    data = os.urandom(4096) * PAGES
    loads, raises = [], []
    for _ in range(ROUNDS):
        with Window([(PAGES, PERCENT)], os.urandom(32), os.urandom(16)) as window:
            started = time.perf_counter()
            window.load(0, data)
            loads.append(PAGES / 256 / (time.perf_counter() - started))
        with Window([(PAGES, 0)], os.urandom(32), os.urandom(16)) as window:
            window.load(0, data)
            started = time.perf_counter()
            window.set_percent(0, PERCENT)
            raises.append((PAGES - window.stats(0).window) / 256 / (time.perf_counter() - started))
    report.add("native/load", "window", statistics.median(loads), "MiB/s")
    report.add("native/raise", "window", statistics.median(raises), "MiB/s")
