"""The Realm's machine: kernel settings, cgroups, power; and what of libc Python does not offer."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time

from vambrace_agent import AgentError

AT_LEAST, EXACTLY = "at least", "exactly"

# What an unprivileged program could learn of, or use against, the kernel. Some cannot be lowered again: more is fine.
SETTINGS = {
    "kernel/dmesg_restrict": (AT_LEAST, "1"),
    "kernel/kptr_restrict": (AT_LEAST, "2"),
    "kernel/unprivileged_bpf_disabled": (AT_LEAST, "1"),
    "kernel/perf_event_paranoid": (AT_LEAST, "3"),
    "kernel/io_uring_disabled": (AT_LEAST, "2"),  # it could open sockets past seccomp
    "kernel/yama/ptrace_scope": (AT_LEAST, "2"),
    "kernel/kexec_load_disabled": (AT_LEAST, "1"),
    "kernel/sysrq": (EXACTLY, "0"),
    "kernel/core_pattern": (EXACTLY, "|/bin/false"),
    "fs/suid_dumpable": (EXACTLY, "0"),
    "fs/protected_symlinks": (AT_LEAST, "1"),
    "fs/protected_hardlinks": (AT_LEAST, "1"),
    "user/max_user_namespaces": (EXACTLY, "0"),
    "vm/unprivileged_userfaultfd": (EXACTLY, "0"),
    "vm/swappiness": (EXACTLY, "0"),
}
# A kernel may be built without these. The call (its number on arm64) says so, with arguments that do nothing.
FEATURES = {
    "kernel/unprivileged_bpf_disabled": (280, (~0, 0, 0)),
    "kernel/perf_event_paranoid": (241, (0, 0, 0, 0, 0)),
    "kernel/io_uring_disabled": (425, (0, 0)),
    "kernel/kexec_load_disabled": (104, (0, 0, 0, ~0)),
    "vm/unprivileged_userfaultfd": (282, (~0,)),
}
_POWER_OFF = 0x4321FEDC

# Flags of mount(2).
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME, MS_BIND = 1 << 0, 1 << 1, 1 << 2, 1 << 10, 1 << 12
MS_REC, MS_SLAVE = 1 << 14, 1 << 19

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A libc function that returns 0 or sets errno. Numbers fill whole registers: prctl looks at all.

    Raises ``OSError``.
    """
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def system_call(number: int, *arguments: object) -> int:
    """What libc has no function for, by its ``number`` on this architecture. Raises ``OSError``."""
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def harden(root: str = "/proc/sys") -> None:
    """Apply ``SETTINGS`` and read each back. Raises ``AgentError`` if one is laxer than it says.

    A setting that does not exist is well only where the kernel has not got what it would close.
    """
    for name, (rule, wanted) in SETTINGS.items():
        path = f"{root}/{name}"
        with contextlib.suppress(OSError):
            put(path, wanted)
        # What counts is what it says now.
        try:
            with open(path, encoding="ascii") as file:
                found = file.read().strip()
        except FileNotFoundError:
            if name in FEATURES and lacks(*FEATURES[name]):
                continue
            raise AgentError(f"the kernel has no setting {name}") from None
        except (OSError, ValueError):
            raise AgentError(f"the kernel's setting {name} cannot be read") from None
        if not _holds(found, rule, wanted):
            raise AgentError(f"the kernel's setting {name} stays {found[:20]!r}")


def lacks(number: int, arguments: tuple[int, ...]) -> bool:
    """Whether the kernel has no such system call."""
    try:
        system_call(number, *arguments)
    except OSError as error:
        return error.errno == errno.ENOSYS
    return False


def restrict(path: str) -> None:
    """Make a device root's only, and see that it is. Raises ``AgentError``."""
    try:
        os.chmod(path, 0o600)
        status = os.stat(path)
    except OSError as error:
        raise AgentError(f"{path} cannot be restricted: {error.strerror}") from None
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise AgentError(f"{path} is open to others")


def enable_controllers() -> None:
    """Let cgroups below the root bind memory nodes and bound processes."""
    put("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset +memory +pids")


def allow_small_ports() -> None:
    """For who serves on them and has no capability over the network that all applications share."""
    put("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")


def set_clock(nanoseconds: int) -> None:
    """Have the kernel's clock say so many nanoseconds since 1970. Raises ``AgentError``."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)
    except OSError as error:
        raise AgentError(f"the clock cannot be set: {error.strerror}") from None


def power_off() -> None:
    """End this machine, by PSCI."""
    os.sync()
    libc.reboot(ctypes.c_int(_POWER_OFF))


def put(path: str, text: str) -> None:
    """Write to a file of the kernel's, which is there. Raises ``OSError``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _holds(found: str, rule: str, wanted: str) -> bool:
    if rule == EXACTLY:
        return found == wanted
    try:
        return int(found) >= int(wanted)
    except ValueError:
        return False
