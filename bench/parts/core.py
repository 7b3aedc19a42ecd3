"""What the native benchmarks share: the window's C sources, compiled in, a machine that can run them, and its time."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
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


def come_first() -> None:
    """In a new process: it goes before everything else on this machine, where it may (root). Beside other work two
    threads would seldom run at once, and caches would be others'."""
    os.setsid()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        # Where sessions share the processors, a priority counts within its session only (sched(7), autogroup).
        Path("/proc/self/autogroup").write_text("-20")
