"""What the encrypted window costs on this machine, without any emulation, against a bound and against swap.

Rows (docs/performance.md): ``native/random-fault/CIPHER`` and ``native/sequential-page/CIPHER`` against the bound,
``native/cpu-per-fault/CIPHER``, ``native/two-threads`` and ``native/two-threads-bound`` over one thread,
``native/zipf/PERCENT`` against the ideal,
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

from bench.parts.core import before_others, compile_with_core, need_window
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
#: What a fault needs at least (moves.c), with moves alone, or copied in and moved out.
LEAST = {"move": "cipher and two moves, no fault", "copy": "cipher, copy and move, no fault"}
PROCESSES = "cipher and two moves, two processes"
#: Room for the program itself where swap limits it, in bytes.
PROGRAM = 2 << 20

Seconds = dict[str, float]


def run(report: Report) -> None:
    """Raises Unavailable: the kernel cannot move pages (before Linux 6.8), or there is no compiler."""
    need_window()
    with tempfile.TemporaryDirectory() as folder, before_others():
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
        self._program, self._moves = folder / "faults", folder / "moves"
        compile_with_core("faults.c", self._program)
        compile_with_core("moves.c", self._moves)
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

    def least(self, work: str, workers: str) -> float | None:
        """Faults per second of two ``workers``, or of ``one``, that need nothing but this work (moves.c); None: not on
        this kernel."""
        command = [str(self._moves), work, workers, str(ACCESSES)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if result.returncode:
            print(f"native/two-threads-bound: {result.stderr.strip()}", file=sys.stderr)
            return None
        measured: Seconds = json.loads(result.stdout)
        return measured["faults"] / measured["seconds"]

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


def faults_per_second(measured: Seconds) -> float:
    return measured["misses"] / measured["seconds"]


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
            report.add_rounds(f"native/{name}/{cipher}", "window", ours, "µs", ratios, "bound", with_interval=True)
        name = f"cpu-per-fault/{cipher}"
        report.add(f"native/{name}", "window", statistics.median(figures[name]), "µs")


def threads(report: Report, bench: Native) -> None:
    """Two threads on two CPUs, each with its own handler, over one; and over the same one, two threads that do nothing
    but the least that a fault needs. Two processes show what the two CPUs have in them."""
    if len(os.sched_getaffinity(0)) < 2:
        print("native/two-threads: this machine has one CPU", file=sys.stderr)
        return
    rates: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}

    def note(subject: str, rate: float | None, against: float | None) -> None:
        if rate and against:
            rates.setdefault(subject, []).append(rate)
            ratios.setdefault(subject, []).append(rate / against)

    for _ in range(ROUNDS):
        one, two = (faults_per_second(bench("engine", *traces)) for traces in (("random",), ("random", "other")))
        note("window", two, one)
        for work, subject in LEAST.items():
            note(subject, bench.least(work, "threads"), one)
        note(PROCESSES, bench.least("move", "processes"), bench.least("move", "one"))
    for subject, found in rates.items():
        name = "native/two-threads" if subject == "window" else "native/two-threads-bound"
        against = "one of them" if subject == PROCESSES else "one thread of the window"
        report.add_rounds(name, subject, found, "faults/s", ratios[subject], against, with_interval=True)


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
        report.add_rounds(f"native/{name}", "window", found, "s", ratios[name], "ideal", with_interval=True)


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
        what = "window (above 1: swap is slower)"
        report.add_rounds(f"native/{name}-vs-swap", against, times, "µs", ratios, what, with_interval=True)


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
