"""What the native benchmarks share: the window's C sources, compiled in, a machine that can run them, and its time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.report import Unavailable
from vambrace.errors import PagerError
from vambrace.pager import Window

PARTS = Path(__file__).parent
CORE = PARTS.parents[1] / "core"


def need_window() -> None:
    """Raises Unavailable: the kernel cannot move pages (before Linux 6.8), or gives no userfaultfd."""
    try:
        Window([(1, 0)], bytes(32), bytes(16)).close()
    except PagerError as error:
        raise Unavailable(f"{error.message} ({error.hint})") from error


def compile_with_core(source: str, output: Path, *options: str) -> None:
    """Compiles ``source`` (of this folder) and all of core/ but its Python module. Raises Unavailable: no compiler."""
    compiler = shutil.which("cc")
    if not compiler:
        raise Unavailable("cc is missing: run 'make packages'")
    sources = map(str, sorted(CORE.glob("*.c")))
    command = [compiler, "-std=gnu11", "-O2", "-pthread", *options, "-o", str(output), str(PARTS / source), *sources]
    subprocess.run([*command, "-lcrypto"], check=True)


@contextmanager
def before_others() -> Iterator[None]:
    """This process and those that it starts go before everything else on this machine, where they may (root). Beside
    other work two threads would seldom run at once, and caches would be others'."""
    # Where sessions share the processors, a priority counts within its session only (sched(7), autogroup).
    session = Path("/proc/self/autogroup")
    before = os.getpriority(os.PRIO_PROCESS, 0)
    # Empty where the kernel has the file and no such sessions (a container of another kernel).
    words = session.read_text().split() if session.exists() else []
    of_session = words[-1] if words else None

    def go(priority: int, with_session: str | None) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)
            if with_session is not None:
                session.write_text(with_session)

    go(-20, of_session and "-20")
    try:
        yield
    finally:
        go(before, of_session)
