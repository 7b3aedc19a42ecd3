"""What the system of a disk is given: a target and drop-ins of systemd's, pipes to the agent, and crun's description.

All of it is below the system's /run, which the agent makes: no path on the disk is followed for it.

    /run/systemd/system/     vambrace.target, a drop-in for each unit, slices
    /run/vambrace/busybox    the agent's own, from the measured base
                  hook       what units run before they start and behind their end
                  told       a pipe: "N start", "N end RESULT CODE STATUS", "0 booted"
                  N.go       a pipe: what a start waits for;  N.output  a pipe: what the unit says
                  results/   of each application, for its unit alone
"""

from __future__ import annotations

import os

from vambrace_agent.settings import DESK, Application

HERE = "/run/vambrace"
SLICE = "vambrace.slice"
TARGET = "vambrace.target"
BUSYBOX = "/usr/bin/busybox"
_DROP_IN = "zz-vambrace.conf"  # behind all others
_HOOK = f"""case $2 in
start)
    echo "$1 start" > {HERE}/told
    read -r word < {HERE}/$1.go
    [ "$word" = go ]
    ;;
end) echo "$1 end $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" > {HERE}/told ;;
booted) echo "0 booted" > {HERE}/told ;;
esac
"""
_RUN_HOOK = f"+{HERE}/busybox sh {HERE}/hook"
# Whose memory is the system's own zone.
_SYSTEMS = {"init.scope": "Scope", "system.slice": "Slice", "user.slice": "Slice", "machine.slice": "Slice"}

_SHUT = ["nosuid", "noexec", "nodev"]
_BIND = ["bind", "nosuid", "nodev"]
_ARCHITECTURES = {"aarch64": "SCMP_ARCH_AARCH64", "x86_64": "SCMP_ARCH_X86_64"}
_EPERM, _AF_VSOCK, _LOW_HALF = 1, 40, 0xFFFFFFFF
#: What a system's root has no right to anyway, and what could open sockets past this filter.
_FORBIDDEN = [
    *("bpf", "delete_module", "finit_module", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup"),
    *("kexec_file_load", "kexec_load", "open_by_handle_at", "perf_event_open", "swapoff", "swapon", "userfaultfd"),
]
#: Of the user namespace, which is all that they hold in: what an init and its services use.
_CAPABILITIES = [
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL"),
    *("LEASE", "LINUX_IMMUTABLE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_NICE", "SYS_PTRACE", "SYS_RESOURCE"),
    "SYS_TTY_CONFIG",
]


def write(run: str, applications: list[Application], owner: int, memory: int) -> None:
    """Fill ``run``, the system's /run, for its root, who is ``owner``; what is no application has ``memory`` bytes."""
    here, units = f"{run}/vambrace", f"{run}/systemd/system"
    os.mkdir(here, 0o755)
    os.mkdir(f"{here}/results", 0o700)
    os.makedirs(units, 0o755)
    texts = {f"{here}/hook": _HOOK, f"{here}/busybox": "", f"{run}/vambrace-agent": ""}
    for application in applications:
        os.mkdir(f"{here}/results/{application.name}")
        os.mkfifo(f"{here}/{application.index}.go", 0o600)
        os.mkfifo(f"{here}/{application.index}.output", 0o600)
        texts[f"{units}/{application.unit}.d/{_DROP_IN}"] = drop_in(application)
    os.mkfifo(f"{here}/told", 0o600)
    wanted = " ".join(["multi-user.target", "vambrace-booted.service", *(one.unit for one in applications)])
    texts[f"{units}/{TARGET}"] = f"[Unit]\nDescription=Applications of the Realm\nWants={wanted}\n"
    texts[f"{units}/{SLICE}"] = "[Unit]\nDescription=Applications of the Realm\n"
    texts[f"{units}/vambrace-booted.service"] = (
        f"[Unit]\nDescription=Telling that all is started\nAfter={' '.join(one.unit for one in applications)}\n"
        f"[Service]\nType=oneshot\nExecStart={_RUN_HOOK} 0 booted\n"
    )
    for name, section in _SYSTEMS.items():
        texts[f"{units}/{name}.d/{_DROP_IN}"] = f"[{section}]\nAllowedMemoryNodes=0\nMemoryMax={memory}\n"
    for path, text in texts.items():
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)
    for folder, _, files in os.walk(run):
        for name in ("", *files):
            os.chown(os.path.join(folder, name), owner, owner, follow_symlinks=False)


def drop_in(application: Application) -> str:
    """What is put behind the unit's own settings (systemd.service(5), systemd.resource-control(5)): its zone, its
    environment, its output, how often it is started again, and the hooks that tell the agent."""
    number = application.index
    words = (f"{name}={value}" for name, value in application.environment.items())
    environment = "".join(f"Environment={quoted(word)}\n" for word in words)
    return (
        f"[Unit]\nStartLimitIntervalSec=infinity\nStartLimitBurst={application.restarts + 1}\n"
        f"[Service]\nSlice={SLICE}\nAllowedMemoryNodes={number}\nMemoryMax={application.memory}\n"
        f"BindPaths={HERE}/results/{application.name}:{application.results_directory}\n{environment}"
        f"StandardOutput=file:{HERE}/{number}.output\nStandardError=inherit\nRemainAfterExit=no\n"
        f"Restart={'on-failure' if application.restarts else 'no'}\nRestartSec=1\n"
        f"ExecStartPre={_RUN_HOOK} {number} start\nExecStopPost={_RUN_HOOK} {number} end\n"
    )


def quoted(text: str) -> str:
    """One word of a unit file, whatever is in it: quoted, with systemd's escapes and no specifier."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + "".join(f"\\x{ord(char):02x}" if ord(char) < 32 else char for char in escaped) + '"'


def describe(applications: list[Application], folder: str, shared: int) -> dict:  # type: ignore[type-arg]
    """What the OCI runtime is told of the system (OCI runtime specification 1.0.2, config.json), whose root is at
    ``folder``/root, whose user namespace is ``folder``/user, and whose /dev/shm has ``shared`` bytes."""
    names = [f"CAP_{name}" for name in _CAPABILITIES]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/sbin/init", f"--unit={TARGET}"],
            "env": ["container=oci", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
            "noNewPrivileges": False,
            "oomScoreAdj": 500,
        },
        "root": {"path": f"{folder}/root"},
        "hostname": "system",
        "mounts": _mounts(applications, folder, shared),
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")),
                {"type": "user", "path": f"{folder}/user"},
            ],
            "maskedPaths": ["/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": [_ARCHITECTURES[os.uname().machine]],
                "syscalls": [_fails(_FORBIDDEN), _fails(["socket"], _VSOCK)],
            },
        },
    }


_VSOCK = {"index": 0, "value": _LOW_HALF, "valueTwo": _AF_VSOCK, "op": "SCMP_CMP_MASKED_EQ"}


def _fails(names: list[str], *arguments: dict) -> dict:  # type: ignore[type-arg]
    found = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}
    return {**found, "args": list(arguments)} if arguments else found


def _mounts(applications: list[Application], folder: str, shared: int) -> list[dict]:  # type: ignore[type-arg]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _mount("/proc", "proc", "proc", _SHUT),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        _mount("/dev/mqueue", "mqueue", "mqueue", _SHUT),
        _mount("/dev/shm", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", f"size={shared}"]),
        # Not the whole of /sys: no device of the Realm's is there for it. As it is read-only, systemd starts no udev.
        _mount("/sys", "tmpfs", "tmpfs", [*_SHUT, "mode=755", "size=64k", "ro"]),
        _mount("/sys/devices/system", "bind", "/sys/devices/system", [*_BIND, "noexec", "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*_SHUT, "relatime"]),
        _mount("/run", "bind", f"{folder}/data/run", _BIND),
        _mount(f"{HERE}/busybox", "bind", BUSYBOX, [*_BIND, "ro"]),
        _mount(DESK, "bind", DESK, _BIND),
        *(
            _mount(f"{HERE}/results/{one.name}", "bind", one.results_directory, [*_BIND, "noexec"])
            for one in applications
        ),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict:  # type: ignore[type-arg]
    return {"destination": destination, "type": kind, "source": source, "options": options}
