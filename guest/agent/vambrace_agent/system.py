"""The Realm's machine: kernel settings, cgroups, power."""

from __future__ import annotations

import ctypes
import os

# What an unprivileged program could learn of, or use against, the kernel.
SETTINGS = {
    "kernel/dmesg_restrict": "1",
    "kernel/kptr_restrict": "2",
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/perf_event_paranoid": "3",
    "kernel/io_uring_disabled": "2",  # it could open sockets past seccomp
    "kernel/yama/ptrace_scope": "2",
    "kernel/kexec_load_disabled": "1",
    "kernel/sysrq": "0",
    "kernel/core_pattern": "|/bin/false",
    "fs/suid_dumpable": "0",
    "fs/protected_symlinks": "1",
    "fs/protected_hardlinks": "1",
    "user/max_user_namespaces": "0",
    "vm/unprivileged_userfaultfd": "0",
    "vm/swappiness": "0",
}
_POWER_OFF = 0x4321FEDC


def harden() -> None:
    """Apply ``SETTINGS``; a kernel without one of them has nothing there to close."""
    for name, value in SETTINGS.items():
        try:
            _write("/proc/sys/" + name, value)
        except FileNotFoundError:
            continue
        except OSError:
            # Some are one-way and stay at a stricter value.
            continue


def enable_controllers() -> None:
    """Let cgroups below the root bind memory nodes and bound processes."""
    _write("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset +memory +pids")


def power_off() -> None:
    """End this machine, by PSCI."""
    os.sync()
    ctypes.CDLL(None).reboot(ctypes.c_int(_POWER_OFF))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
