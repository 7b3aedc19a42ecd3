"""Starting an application so that it reaches its own files and its own memory zone.

In order, in the child: mount and IPC namespaces with its own /tmp and /dev/shm in its NUMA node, no capabilities, no
new privileges, neither AF_VSOCK nor io_uring, its own user; then, behind a gate, its cgroup (its NUMA node, limits) and
the program. The applications of one Realm share its network: they may talk to each other over loopback.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct

from vambrace_agent import AgentError, groups
from vambrace_agent.settings import Application
from vambrace_agent.system import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, MS_SLAVE, call, put

MAX_PROCESSES = 512
MAX_FILES = 4096
#: A folder of the measured base in which an application finds what it is given under names of its own choice.
DATA = "/data"
_BUSYBOX = "/usr/bin/busybox"
_GATE = 3
_JOIN = f'echo 0 >&{_GATE} || exit 126; exec {_GATE}>&-; exec {_BUSYBOX} env -i "$@"'

_CLONE_NEWNS, _CLONE_NEWIPC = 0x00020000, 0x08000000
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_AUDIT_ARCH_AARCH64, _NR_SOCKET, _NR_IO_URING_SETUP, _AF_VSOCK = 0xC00000B7, 198, 425, 40
_RET_ALLOW, _RET_EPERM = 0x7FFF0000, 0x00050000 | 1


def mount_tmpfs(path: str, node: int, size: int, *, mode: int, uid: int) -> None:
    """A tmpfs whose pages are on NUMA ``node`` and nowhere else. ``size`` in bytes."""
    options = f"mpol=bind:{node},size={size},mode={mode:o},uid={uid},gid={uid},nr_inodes=65536"
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())


def prepare(application: Application, logs: str) -> None:
    """Make the cgroup and the directories of ``application`` and its ``logs``. Raises ``AgentError``."""
    for _, target in application.mounts if not application.container else ():
        if not target.startswith(f"{DATA}/") and not os.path.isdir(target):
            raise AgentError(f"application {application.name}: there is no folder {target}: mount it below {DATA}")
    try:
        group = _group(application)
        os.mkdir(group)
        put(f"{group}/cpuset.mems", str(application.index))
        # A container's runtime waits beside it.
        processes = application.container.processes + 1 if application.container else MAX_PROCESSES
        put(f"{group}/pids.max", str(processes))
        put(f"{group}/memory.max", str(application.memory))
        put(f"{group}/memory.oom.group", "1")
        half = application.memory // 2
        os.makedirs(application.results_directory)
        mount_tmpfs(application.results_directory, application.index, half, mode=0o700, uid=application.uid)
        os.makedirs(logs, mode=0o700)
        mount_tmpfs(logs, application.index, 2 << 20, mode=0o700, uid=0)
    except OSError as error:
        raise AgentError(f"application {application.name} cannot be confined: {error.strerror}") from None


def launch(application: Application, output: int) -> int:
    """Start ``application`` with its output going to ``output``; returns its process number."""
    pid = os.fork()
    if pid:
        return pid
    status = 126
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        door = gate(application)
        _enter(application)
        execute(application, door)
    except FileNotFoundError:
        _say(f"vambrace: {application.command[0]}: no such program\n")
        status = 127
    except OSError as error:
        _say(f"vambrace: {application.command[0]}: {error.strerror}\n")
    finally:
        os._exit(status)
    return 0


def execute(application: Application, door: int) -> None:
    """Replace this process by the program of ``application``, behind its gate. Raises ``FileNotFoundError``."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    usual_signals()
    os.chdir(application.directory)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": application.results_directory,
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        **application.environment,
    }
    if not _exists(application.command[0], environment["PATH"]):
        raise FileNotFoundError(application.command[0])
    step_through(door, application.command, environment)


def usual_signals() -> None:
    """As programs expect them to be when they start."""
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def gate(application: Application) -> int:
    """A descriptor by which its holder, whoever that has become, may enter the application's cgroup."""
    return os.open(f"{_group(application)}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)


def step_through(door: int, command: list[str], environment: dict[str, str]) -> None:
    """Replace this process by ``command``, with ``environment`` and no other descriptors than the standard three, in
    the cgroup that is behind ``door``.

    Whoever enters brings all pages along that it maps (cgroup-v2, "cpuset.mems"), and a child shares those of the agent
    until it is another program: keys would be encrypted as the application wants, and its node would be full of them.
    So it first becomes a program of which nothing matters, and that one enters.
    """
    # What is written is judged by who opened it.
    os.dup2(door, _GATE)
    os.set_inheritable(_GATE, True)  # also where it was that one already
    os.closerange(_GATE + 1, 65536)
    # A command's name has no "=": the image builder sees to that.
    variables = [f"{name}={value}" for name, value in environment.items()]
    os.execve(_BUSYBOX, ["busybox", "sh", "-c", _JOIN, "sh", *variables, *command], {})


def members(application: Application) -> list[int]:
    """The processes of ``application``."""
    return groups.members(_group(application))


def terminate(application: Application) -> None:
    """Ask every process of ``application`` to end."""
    groups.terminate(_group(application))


def stop(application: Application) -> None:
    """Kill every process that ``application`` left."""
    groups.kill(_group(application))


def _enter(application: Application) -> None:
    os.setsid()
    put("/proc/self/oom_score_adj", "500")
    call("unshare", _CLONE_NEWNS | _CLONE_NEWIPC)
    call("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)
    for path in ("/tmp", "/dev/shm"):
        mount_tmpfs(path, application.index, application.memory // 4, mode=0o700, uid=application.uid)
    _mount_disks(application)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    fd = os.open("/proc/sys/kernel/cap_last_cap", os.O_RDONLY)
    last = int(os.read(fd, 16))
    os.close(fd)
    for capability in range(last + 1):
        call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.umask(0o077)
    os.setgroups([])
    os.setresgid(application.uid, application.uid, application.uid)
    os.setresuid(application.uid, application.uid, application.uid)
    _forbid_vsock()


def _mount_disks(application: Application) -> None:
    """What of the disks is this application's, where it wants to find it: below ``DATA``, or in place of a folder."""
    if any(target.startswith(f"{DATA}/") for _, target in application.mounts):
        mount_tmpfs(DATA, application.index, 1 << 20, mode=0o755, uid=0)
    for source, target in application.mounts:
        if target.startswith(f"{DATA}/"):
            os.makedirs(target, mode=0o755)
        call("mount", source.encode(), target.encode(), None, MS_BIND, None)


def _forbid_vsock() -> None:
    """Seccomp: socket(AF_VSOCK, …) and io_uring_setup, which could open one past this filter, fail with EPERM, and so
    does every call of another architecture."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 6, _AUDIT_ARCH_AARCH64),
        (load, 0, 0, 0),  # .nr
        (equal, 4, 0, _NR_IO_URING_SETUP),
        (equal, 0, 2, _NR_SOCKET),
        (load, 0, 0, 16),  # .args[0], low half
        (equal, 1, 0, _AF_VSOCK),
        (give, 0, 0, _RET_ALLOW),
        (give, 0, 0, _RET_EPERM),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)


def _exists(program: str, path: str) -> bool:
    folders = [""] if "/" in program else [f"{folder or '.'}/" for folder in path.split(":")]
    return any(os.path.exists(folder + program) for folder in folders)


def _group(application: Application) -> str:
    return f"{groups.ROOT}/{application.name}"


def _say(text: str) -> None:
    os.write(2, text.encode())
