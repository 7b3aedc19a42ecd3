"""Control groups (cgroup-v2), each by its folder: who is in it, and how it is emptied."""

from __future__ import annotations

import contextlib
import os
import signal

from vambrace_agent.system import put

ROOT = "/sys/fs/cgroup"


def members(group: str) -> list[int]:
    """The processes of ``group``. Raises ``FileNotFoundError``."""
    with open(f"{group}/cgroup.procs", encoding="ascii") as file:
        return [int(line) for line in file]


def terminate(group: str) -> None:
    """Ask every process of ``group`` to end. Raises ``FileNotFoundError``."""
    for pid in members(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def kill(group: str) -> None:
    """Kill every process of ``group`` and of those below it. Raises ``FileNotFoundError``."""
    put(f"{group}/cgroup.kill", "1")
