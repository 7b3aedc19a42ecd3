"""What the OCI runtime is told of a container (OCI runtime specification 1.0.2, config.json)."""

from __future__ import annotations

import os

from vambrace_agent.settings import DESK, Application

#: Processes of a container can fill this, and not one page of it is another application's.
_DEV = ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]
_SHUT = ["nosuid", "noexec", "nodev"]
_BIND = ["bind", "nosuid", "nodev"]
MASKED = [
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_ARCHITECTURES = {"aarch64": "SCMP_ARCH_AARCH64", "x86_64": "SCMP_ARCH_X86_64"}
_EPERM, _ENOSYS = 1, 38
_AF_VSOCK, _CLONE_NEWUSER = 40, 0x10000000
_LOW_HALF = 0xFFFFFFFF  # of an argument that the kernel takes as 32 bits
#: What no container needs, whatever it may do: the kernel's own affairs, mounts, other namespaces, keys that users
#: share, io_uring, which could open sockets past this filter, and file handles, which lead past mounts.
FORBIDDEN = [
    *("acct", "add_key", "adjtimex", "bpf", "clock_adjtime", "clock_settime", "delete_module", "finit_module"),
    *("fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter", "io_uring_register"),
    *("io_uring_setup", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount", "mount_setattr"),
    *("move_mount", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root", "quotactl"),
    *("quotactl_fd", "reboot", "request_key", "setns", "settimeofday", "swapoff", "swapon", "umount2"),
    *("userfaultfd", "vhangup"),
]


def describe(application: Application, folder: str) -> dict:  # type: ignore[type-arg]
    """The configuration of a container whose root is at ``folder``/root and whose user namespace is ``folder``/user."""
    return {
        "ociVersion": "1.0.2",
        "process": process(application, application.command),
        "root": {"path": f"{folder}/root"},
        "hostname": application.name,
        "mounts": _mounts(application, folder),
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")),
                {"type": "user", "path": f"{folder}/user"},
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp(os.uname().machine),
        },
    }


def process(application: Application, command: list[str]) -> dict:  # type: ignore[type-arg]
    """A process of the container: the application's own, or its health check."""
    container = application.container
    assert container is not None
    names = [f"CAP_{name}" for name in container.capabilities]
    # Who is not root gets none by running a program; root's are bounded all the same.
    given = names if container.uid == 0 else []
    return {
        "terminal": False,
        "user": {"uid": container.uid, "gid": container.gid, "umask": 0o22, "additionalGids": container.groups},
        "args": command,
        "env": [f"{name}={value}" for name, value in application.environment.items()],
        "cwd": application.directory,
        "capabilities": {"bounding": names, "effective": given, "permitted": given, "inheritable": [], "ambient": []},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": container.files, "hard": container.files},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        "noNewPrivileges": True,
        "oomScoreAdj": 500,
    }


def seccomp(machine: str) -> dict:  # type: ignore[type-arg]
    """The filter: calls of other architectures end the process, ``FORBIDDEN`` ones fail, and so do AF_VSOCK and new
    user namespaces. Nothing of clone3 can be looked at: it is not there, and libraries use clone."""
    vsock = {"index": 0, "value": _LOW_HALF, "valueTwo": _AF_VSOCK, "op": "SCMP_CMP_MASKED_EQ"}
    user = {"index": 0, "value": _CLONE_NEWUSER, "valueTwo": _CLONE_NEWUSER, "op": "SCMP_CMP_MASKED_EQ"}
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [_ARCHITECTURES[machine]],
        "syscalls": [
            _fails(FORBIDDEN, _EPERM),
            _fails(["clone3"], _ENOSYS),
            _fails(["socket"], _EPERM, vsock),
            _fails(["clone"], _EPERM, user),
            _fails(["unshare"], _EPERM, user),
        ],
    }


def _fails(names: list[str], error: int, *arguments: dict) -> dict:  # type: ignore[type-arg]
    found = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error}
    return {**found, "args": list(arguments)} if arguments else found


def _mounts(application: Application, folder: str) -> list[dict]:  # type: ignore[type-arg]
    results = application.results_directory
    return [
        _mount("/proc", "proc", "proc", _SHUT),
        _mount("/dev", "tmpfs", "tmpfs", _DEV),
        _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", _SHUT),
        _mount("/dev/shm", "bind", f"{folder}/data/shm", [*_BIND, "noexec"]),
        # Not the whole of /sys: it shows the other applications' cgroups.
        _mount("/sys", "tmpfs", "tmpfs", [*_SHUT, "mode=755", "size=64k"]),
        _mount("/sys/devices/system", "bind", "/sys/devices/system", [*_BIND, "noexec", "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*_SHUT, "relatime", "ro"]),
        _mount("/etc/hosts", "bind", f"{folder}/hosts", [*_BIND, "ro"]),
        _mount("/etc/hostname", "bind", f"{folder}/hostname", [*_BIND, "ro"]),
        _mount(results, "bind", results, _BIND),
        _mount(DESK, "bind", DESK, _BIND),
        *(_mount(target, "bind", source, _BIND) for source, target in application.mounts),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict:  # type: ignore[type-arg]
    return {"destination": destination, "type": kind, "source": source, "options": options}
