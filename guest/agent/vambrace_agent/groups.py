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


def group_of(pid: int) -> str:
    """The folder of the group that the process ``pid`` is in. Raises ``OSError`` where there is no such process."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")
    return ROOT + next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def terminate(group: str) -> None:
    """Ask every process of ``group`` to end. Raises ``FileNotFoundError``."""
    for pid in members(group):
        with contextlib.suppress(OSError):  # it has ended
            _terminate(pid, group)


def _terminate(pid: int, group: str) -> None:
    """A number may be another process's by now. What is open is one process: if that is in the group, it is meant."""
    process = os.pidfd_open(pid)
    try:
        if group_of(pid) == group:
            signal.pidfd_send_signal(process, signal.SIGTERM)
    finally:
        os.close(process)


def kill(group: str) -> None:
    """Kill every process of ``group`` and of those below it. Raises ``FileNotFoundError``."""
    put(f"{group}/cgroup.kill", "1")
