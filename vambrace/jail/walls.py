"""What a process is cut off from before it becomes a VMM, and what it loses when it has imported everything.

Two stages, because Python needs files to start. ``enclose`` is the first, between fork and exec: after it the process
has a user of its own, no capability and no way to one, namespaces of its own, limits, and a root with nothing but what
Python reads. When it says that it has imported everything, ``empty_root`` takes that away from it too, and it binds
itself to the system calls of ``calls.py``; ``check`` asks the kernel whether all of this is so. Only then is it told
anything.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from vambrace.errors import HostError
from vambrace.jail import linux

#: The process namespace is another matter: only a child is in the new one.
_NAMESPACES: Final = (
    linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET | linux.CLONE_NEWCGROUP
)
#: Bounds of what a VMM may have, whatever its cgroup is. Guest memory is locked; how much, is the cgroup's matter.
_LIMITS: Final = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_NOFILE: 4096,
    resource.RLIMIT_NPROC: 1024,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 256,
}
#: Any directory that each system has and Python reads nothing of: the new root is mounted there while it is made.
_SITE: Final = Path("/proc")
_EMPTY: Final = Path("/empty")
_TMPFS: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_READ_ONLY: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_RDONLY


def python_reads(*others: str) -> tuple[Path, ...]:
    """Files and directories that a Python process like this one, and ``others``, are read from; the outermost only."""
    wanted = {"/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf", *others}
    wanted |= {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)}
    wanted |= {path for path in sys.path if path.startswith("/")}
    wanted.add(str(Path(__file__).parents[2]))
    kept: list[Path] = []
    for path in sorted(Path(name) for name in wanted - {"/"}):
        above = next((there for there in kept if there in path.parents), None)
        # What is mounted below another one does not come with it.
        if path.exists() and (above is None or above.stat().st_dev != path.stat().st_dev):
            kept.append(path)
    return tuple(kept)


def enclose(user: int, cpus: Iterable[int], reads: Sequence[Path]) -> None:
    """The first stage, for the calling process, which is root and has one thread. Raises ``OSError``."""
    os.setsid()
    linux.unshare(_NAMESPACES)
    _make_root(reads)
    if cpus := set(cpus):
        os.sched_setaffinity(0, cpus)
    for limit, most in _LIMITS.items():
        with suppress(ValueError):  # it would have to be raised, which a container's root may not
            resource.setrlimit(limit, (most, most))
    linux.bound_capabilities()
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    linux.set_capabilities()
    linux.no_new_privileges()


def _make_root(reads: Sequence[Path]) -> None:
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    os.umask(0o022)
    linux.mount("vambrace", _SITE, "tmpfs", _TMPFS, "mode=0755,size=1m,nr_inodes=1k")
    _inside(_EMPTY).mkdir()
    for path in reads:
        _bind(path, _inside(path))
    linux.mount("", _SITE, "", linux.MS_REMOUNT | linux.MS_RDONLY | _TMPFS)
    _pivot(_SITE)
    os.umask(0o077)


def _inside(path: Path) -> Path:
    return _SITE / path.relative_to("/")


def _bind(path: Path, target: Path) -> None:
    """What is at ``path``, for reading, at ``target`` too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    linux.mount(path, target, "", linux.MS_BIND)
    linux.mount("", target, "", linux.MS_REMOUNT | linux.MS_BIND | _READ_ONLY)


def _pivot(root: Path) -> None:
    """Make the mount at ``root`` the root of every process of this namespace, and drop the old one."""
    os.chdir(root)
    linux.pivot_root(".", ".")  # the old root is now on top of the new one
    linux.unmount(".")
    os.chdir("/")


def empty_root(process: int) -> None:
    """The second stage, for a process that has been through the first: its root is empty, and stays so.

    The calling process, which is root and has one thread, does it in the other's mount namespace and returns to its
    own. Raises ``OSError``.
    """
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.set_namespace(theirs, linux.CLONE_NEWNS)
        finally:
            os.close(theirs)
        try:
            linux.mount("vambrace", _EMPTY, "tmpfs", linux.MS_RDONLY | _TMPFS, "mode=0555,size=4k,nr_inodes=1")
            _pivot(_EMPTY)
        finally:
            linux.set_namespace(own, linux.CLONE_NEWNS)
    finally:
        os.close(own)


def check(process: int, user: int) -> None:
    """Raises ``HostError`` unless the kernel says that this process, in both stages, is what it should be."""
    status = Path(f"/proc/{process}/status").read_bytes()
    lines = dict(line.split(b":", 1) for line in status.splitlines())
    wanted = {
        **dict.fromkeys((b"Uid", b"Gid"), [b"%d" % user] * 4),
        **dict.fromkeys((b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb"), [b"0" * 16]),
        b"Groups": [],
        b"NoNewPrivs": [b"1"],
        b"Seccomp": [b"2"],
        b"Threads": [b"1"],
    }
    for name, value in wanted.items():
        if lines[name].split() != value:
            raise HostError(f"the VMM is not shut in: {name.decode()} is {lines[name].strip().decode()}")
