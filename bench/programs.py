"""What a percentage costs real programs on this machine, without any emulation: their whole heap in the window.

Rows ``native/program/NAME/PERCENT``: seconds of the whole run, compared with the same at 0 percent (above 1 is slower),
and the pages decrypted. The zone is as large as the heap becomes, so a percentage is one of what the program uses; in
``native/inside/NAME`` it is twice as large, and half encrypted, so that all fits into the window (above 1 is faster).
Medians of ``VAMBRACE_BENCH_ROUNDS`` (3) rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.parts.core import before_others, compile_with_core, need_window
from bench.policy import workloads
from bench.report import Report, rounds

ROUNDS = rounds(3)
PERCENTS = (0, 25, 50, 75, 90, 95)
#: MiB: more than any of the programs needs.
LARGE = 900

_ROOT = Path(__file__).parents[1]
_RENAMED = ("-Dmmap=heap_mmap", "-Dmunmap=heap_munmap", "-Dcalloc=heap_calloc")


def run(report: Report) -> None:
    """Raises Unavailable: the kernel cannot move pages (before Linux 6.8), or there is no compiler."""
    need_window()
    with tempfile.TemporaryDirectory() as folder, before_others():
        heap = Heap(Path(folder))
        for name in workloads.NAMES:
            program(report, heap, name)


class Heap:
    """Runs programs with their heap in a window. Raises Unavailable: no compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "heap.so"
        compile_with_core("heap.c", self._library, "-fPIC", "-shared", *_RENAMED)

    def __call__(self, name: str, mebibytes: int, percent: int) -> dict[str, Any]:
        """Statistics of one run, and its ``seconds``. Raises RuntimeError with what the program said."""
        words, feed = workloads.command(name)
        told = self._folder / "report"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "HEAP_MIB": str(mebibytes),
            "HEAP_PERCENT": str(percent),
            "HEAP_REPORT": str(told),
            "PYTHONMALLOC": "malloc",  # Python's own allocator has its memory from mmap
            "PYTHONHASHSEED": "0",
        }
        started = time.perf_counter()
        done = subprocess.run(words, cwd=_ROOT, env=environment, input=feed, capture_output=True, timeout=600)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"{name} at {percent} %: {done.stderr.decode(errors='replace').strip()}")
        return {**json.loads(told.read_text()), "seconds": seconds}


def program(report: Report, heap: Heap, name: str) -> None:
    """One program at every percentage, in turn."""
    touched = heap(name, LARGE, 1)["plaintext_max"]
    mebibytes = touched // 256 + 1
    runs: dict[int, list[dict[str, Any]]] = {percent: [] for percent in PERCENTS}
    inside = []
    for _ in range(ROUNDS):
        for percent in PERCENTS:
            runs[percent].append(heap(name, mebibytes, percent))
        inside.append(heap(name, 2 * mebibytes, 0)["seconds"] / heap(name, 2 * mebibytes, 50)["seconds"])
    for percent, found in runs.items():
        row, zone = f"native/program/{name}/{percent}", f"{mebibytes} MiB"
        pairs = zip(found, runs[0], strict=True)
        ratios = [one["seconds"] / plain["seconds"] for one, plain in pairs]
        report.add_rounds(row, zone, [one["seconds"] for one in found], "s", ratios, "0 %")
        report.add(f"{row}/decrypted", zone, statistics.median(one["decrypted"] for one in found), "pages")
    ratio = statistics.median(inside)
    report.add(f"native/inside/{name}", "50 % of twice the heap", ratio, "of 0 %'s speed", ratio=ratio, against="0 %")
