"""Foreign sources that are built with ours laid beside them: the same bits wherever and whenever that is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from vambrace.debian import tools
from vambrace.errors import BuildError

OURS = Path(__file__).parent.parent.parent / "firmware"
COMPILER = "aarch64-linux-gnu-"
JOBS = 2

#: A point in time for everything that wants to write one down (2026-01-01T00:00:00Z).
EPOCH = 1767225600


def lay_beside(makefile: Path, part: str, line: str, *, up: int = 0) -> None:
    """Add firmware/``part`` as a folder "vambrace" beside ``makefile`` or ``up`` folders above, and ``line`` to it."""
    if not makefile.exists():
        raise BuildError(f"{makefile} is not where the sources have it", hint="another version of the sources?")
    target = makefile.parents[up] / "vambrace"
    shutil.copytree(OURS / part, target, dirs_exist_ok=True)
    shutil.copytree(OURS / "common", target, dirs_exist_ok=True)
    text = makefile.read_text()
    if line not in text.splitlines():
        makefile.write_text(f"{text.rstrip()}\n{line}\n")


def make(directory: Path, arguments: Iterable[str], log: Path) -> None:
    environment = {
        # Debian's own Python has what OP-TEE's scripts import; another one that comes first in PATH may not.
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "TZ": "UTC",
        # A make around this one must not lend its options.
        "MAKEFLAGS": "",
        "MFLAGS": "",
    }
    tools.run(["make", f"-j{JOBS}", "-C", directory, *arguments], env=environment, log=log)


def fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out
