"""What a page fault through the encrypted window costs on this machine.

Every fault of the steady state decrypts one page and evicts another. Random access gives the cost of a
fault, sequential access the cost per page (fault-around joins neighbours).
"""

from __future__ import annotations

import os
import random
import time

from bench.report import Report, Unavailable
from vambrace.errors import PagerError
from vambrace.pager import Window

PAGE = 4096
PAGES_PER_MIB = 256
MEGABYTES = 128
WINDOW_MEGABYTES = 16


def run(report: Report) -> None:
    """Both placements of the handler. Raises Unavailable: the kernel cannot move pages (before Linux 6.8)."""
    try:
        Window([(1, 0)], os.urandom(32), os.urandom(16)).close()
    except PagerError as error:
        raise Unavailable(f"{error.message} ({error.hint})") from error
    allowed = os.sched_getaffinity(0)
    own, *others = sorted(allowed)
    os.sched_setaffinity(0, {own})
    try:
        measure(report, own, "handler on the faulting CPU")
        if others:
            measure(report, others[-1], "handler on another CPU")
    finally:
        os.sched_setaffinity(0, allowed)


def measure(report: Report, handler_cpu: int, subject: str) -> None:
    """One handler placement, on a region of MEGABYTES of which WINDOW_MEGABYTES may be plaintext."""
    pages = MEGABYTES * PAGES_PER_MIB
    percent = 100 - 100 * WINDOW_MEGABYTES // MEGABYTES
    order = list(range(pages))
    random.Random(1).shuffle(order)
    with Window([(pages, percent)], os.urandom(32), os.urandom(16), handler_cpus=[handler_cpu]) as window:
        memory = window.memory()
        data = os.urandom(PAGE) * pages
        start = time.perf_counter()
        window.load(0, data)
        report.add("pager.load", subject, MEGABYTES / (time.perf_counter() - start), "MiB/s")

        def visit(name: str, sequence: list[int]) -> None:
            before = window.stats(0)
            start = time.perf_counter()
            for page in sequence:
                memory[page * PAGE]
            seconds = time.perf_counter() - start
            after = window.stats(0)
            decrypted = (after.bytes_decrypted - before.bytes_decrypted) // PAGE
            report.add(f"pager.{name}.per_page", subject, seconds / max(decrypted, 1) * 1e6, "µs")
            faults = after.faults - before.faults
            report.add(f"pager.{name}.per_fault", subject, seconds / max(faults, 1) * 1e6, "µs")

        visit("random", order)
        visit("sequential", list(range(pages)))
        window.set_percent(0, 0)
        for page in range(pages):
            memory[page * PAGE]
        start = time.perf_counter()
        window.set_percent(0, percent)
        encrypted = MEGABYTES - window.stats(0).window / PAGES_PER_MIB
        report.add("pager.raise_percentage", subject, encrypted / (time.perf_counter() - start), "MiB/s")
