"""Swap in compressed memory (zram), and a limit on a process's memory that makes it swap. Both need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from bench.report import Unavailable

_CONTROL = Path("/sys/class/zram-control")
_CLUSTER = Path("/proc/sys/vm/page-cluster")
_CGROUPS = Path("/sys/fs/cgroup")


class Swap:
    """An active swap device."""

    def read_ahead(self, cluster: int) -> None:
        """2^cluster pages are read at a time (vm.page-cluster)."""
        _CLUSTER.write_text(str(cluster))


@contextmanager
def zram(size: int) -> Iterator[Swap]:
    """A zram device of ``size`` bytes as the preferred swap; everything is as before afterwards.

    Raises Unavailable: not root, no zram in the kernel, or no mkswap.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root can turn swap on")
    if not _CONTROL.is_dir():
        subprocess.run(["modprobe", "zram"], capture_output=True)
    try:
        number = int((_CONTROL / "hot_add").read_text())
    except OSError as error:
        raise Unavailable(f"this kernel gives no zram device: {error.strerror}") from error
    device, cluster = f"/dev/zram{number}", _CLUSTER.read_text()
    try:
        if not Path(device).exists():
            _make_node(device, number)
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
        for command in (["mkswap", device], ["swapon", "--priority", "32767", device]):
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise Unavailable(f"{command[0]}: {result.stderr.strip()}")
        try:
            yield Swap()
        finally:
            subprocess.run(["swapoff", device], check=True)
    except FileNotFoundError as error:
        raise Unavailable(f"{error.filename} is missing") from error
    finally:
        _CLUSTER.write_text(cluster)
        Path(f"/sys/block/zram{number}/reset").write_text("1")
        (_CONTROL / "hot_remove").write_text(str(number))


def _make_node(device: str, number: int) -> None:
    """Where no daemon makes device nodes."""
    major, minor = map(int, Path(f"/sys/block/zram{number}/dev").read_text().split(":"))
    os.mknod(device, 0o600 | 0o060000, os.makedev(major, minor))


class Limit:
    """A control group whose processes have at most ``size`` bytes of memory, and swap. Raises Unavailable."""

    def __init__(self, size: int) -> None:
        unified = (_CGROUPS / "cgroup.controllers").exists()
        parent = _CGROUPS if unified else _CGROUPS / "memory"
        self._group = parent / f"vambrace-bench-{os.getpid()}"
        try:
            if unified:
                (parent / "cgroup.subtree_control").write_text("+memory")
            self._group.mkdir()
            (self._group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(size))
        except OSError as error:
            if self._group.is_dir():
                self._group.rmdir()
            raise Unavailable(f"no control group for memory: {error.strerror}") from error

    def enter(self) -> None:
        """Puts the calling process in."""
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def __enter__(self) -> Limit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.rmdir()
