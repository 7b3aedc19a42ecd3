"""A directory that behaves as the root of cgroup v2 does towards ``Cgroups``, as far as files can.

What is written is kept and read back. A group goes with its files once nobody is in it; who is in a group whose
``cgroup.kill`` was written is killed first, as by the kernel.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

from vambrace.partition.cgroups import CONTROLLERS, Cgroups


def make(root: Path, controllers: tuple[str, ...] = CONTROLLERS) -> Cgroups:
    root.mkdir(exist_ok=True)
    (root / "cgroup.controllers").write_text(" ".join(controllers) + "\n")
    return Cgroups(root, remove)


def machine(root: Path, cores: tuple[tuple[int, ...], ...]) -> Path:
    """What sysfs says of a machine with these ``cores``, each given by its siblings."""
    for core in cores:
        for cpu in core:
            folder = root / f"cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n")
    (root / "online").write_text(f"0-{max(map(max, cores))}\n")
    return root


def remove(group: Path) -> None:
    members = group / "cgroup.procs"
    pids = [int(word) for word in members.read_text().split()] if members.exists() else []
    living = [pid for pid in pids if lives(pid)]
    if living and (group / "cgroup.kill").exists():
        for pid in living:
            os.kill(pid, signal.SIGKILL)
    if living:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    shutil.rmtree(group)


def lives(pid: int) -> bool:
    """A process that has ended and was not waited for is in no group."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
