"""System calls that Python's library has not in all its versions, through libc. Each raises ``OSError``."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

# linux/sched.h
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

# linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

# linux/capability.h
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_KILL: Final = 5
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_SYS_NICE: Final = 23
CAP_SYS_RESOURCE: Final = 24

# linux/prctl.h, linux/capability.h
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION: Final = 0x2008_0522
# Read once: where it is needed there is no /proc any more.
_LAST_CAPABILITY: Final = int(Path("/proc/sys/kernel/cap_last_cap").read_text())

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | Path, target: str | Path, kind: str, flags: int, options: str = "") -> None:
    _call(_libc.mount, os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())


def unmount(target: str) -> None:
    """As soon as nobody uses it any more, and out of sight at once."""
    _call(_libc.umount2, target.encode(), MNT_DETACH)


def pivot_root(new: str, old: str) -> None:
    _call(_libc.pivot_root, new.encode(), old.encode())


def unshare(flags: int) -> None:
    _call(_libc.unshare, flags)


def set_namespace(descriptor: int, kind: int) -> None:
    _call(_libc.setns, descriptor, kind)


def no_new_privileges() -> None:
    """From now on no program that is executed gives more rights."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bound_capabilities(kept: Iterable[int] = ()) -> None:
    """Only ``kept`` can ever be had again by this thread and what it starts."""
    for capability in set(range(_LAST_CAPABILITY + 1)) - set(kept):
        _prctl(_PR_CAPBSET_DROP, capability)


def set_capabilities(kept: Iterable[int] = ()) -> None:
    """This thread has ``kept`` and no others, and leaves none to a program that it executes."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    mask = sum(1 << capability for capability in set(kept)) & _permitted()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    # effective, permitted, inheritable; the lower 32 of each, then the upper ones
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _call(_libc.capset, header, data)


def _permitted() -> int:
    """What this thread may have at all: a container's root has not everything."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _call(_libc.capget, header, data)
    return int(data[1]) | int(data[4]) << 32


def _prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    _call(_libc.prctl, option, ctypes.c_ulong(argument), zero, zero, zero)


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
