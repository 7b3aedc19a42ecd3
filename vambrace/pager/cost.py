"""What a page fault through the window costs on this machine, measured on a small window of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from vambrace.errors import PagerError
from vambrace.pager.window import PAGE_SIZE, Window

#: So many pages that few of those touched at random are within the smallest window.
PAGES = 2048
FAULTS = 300


def fault_ns(cpus: Sequence[int] = (), userfaultfd: int = 0) -> int:
    """Nanoseconds of a fault that decrypts a page and evicts another, from the touch until the thread goes on.

    With ``cpus``, on the first of them, as a vCPU and its handler share it. Takes FAULTS such faults, after PAGES have
    been filled. ``userfaultfd`` as for ``Window``. Raises PagerError.
    """
    found: list[int] = []
    errors: list[Exception] = []

    def measure() -> None:
        try:
            if cpus:
                os.sched_setaffinity(0, {cpus[0]})
            found.append(_cost(window))
        except Exception as error:
            errors.append(error)

    with Window(
        [(PAGES, 100)], os.urandom(32), os.urandom(16), handler_cpus=list(cpus[:1]), userfaultfd=userfaultfd
    ) as window:
        # A thread of its own: the caller's stays where it may run.
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
    if errors:
        raise PagerError(f"the cost of a page fault cannot be measured: {errors[0]}") from errors[0]
    return found[0]


def _cost(window: Window) -> int:
    memory = window.memory()
    for page in range(PAGES):
        memory[page * PAGE_SIZE] = 1
    before, started = window.stats(0).bytes_decrypted, time.monotonic_ns()
    page = 1
    for _ in range(FAULTS):
        page = (page * 1103515245 + 12345) % PAGES
        _ = memory[page * PAGE_SIZE]
    spent = time.monotonic_ns() - started
    decrypted = (window.stats(0).bytes_decrypted - before) // PAGE_SIZE
    return spent // max(1, decrypted)
