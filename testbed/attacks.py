"""What an attacker's Python tries from inside a VMM. Root on a host may do all of it; in the jail nothing of it works.

    probe(targets) → a word on what was reached     or an error, or the end of the process

``TARGETS`` says what there is to reach: another domain's VMM, the daemon, their files, sockets and devices.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: linux/unistd.h, x86-64 and arm64
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "fanotify_init": (300, 262),
    "fork": (56, 220),  # clone, with flags of fork
    "inotify_init1": (294, 26),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "setns": (308, 268),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_ARM = platform.machine() == "aarch64"
_libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_ATTACH, PTRACE_DETACH = 0x4206, 16, 17
CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000

Targets = dict[str, Any]
Probe = Callable[[Targets], str]
PROBES: dict[str, Probe] = {}


def probe(function: Probe) -> Probe:
    PROBES[function.__name__] = function
    return function


def call(name: str, *arguments: Any) -> int:
    """A system call by its number: what the library would refuse, the kernel is asked. Raises ``OSError``."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    _libc.syscall.restype = ctypes.c_long
    result: int = _libc.syscall(ctypes.c_long(NUMBERS[name][_ARM]), *words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


# --- files and devices ---------------------------------------------------------------------------------------


@probe
def read_files(targets: Targets) -> str:
    """The host's secrets, images, other domains' records; at their paths, and anywhere below / ."""
    return _first(_read, targets["files"])


@probe
def list_root(targets: Targets) -> str:
    names = [path.name for path in Path("/").iterdir()]
    if not names:
        raise FileNotFoundError(errno.ENOENT, "/ is empty")
    return " ".join(names)


@probe
def escape_root(targets: Targets) -> str:
    """By a smaller root that one stands outside of: from there ``..`` leads everywhere."""
    os.chdir("/")
    call("chroot", targets["folder"].encode())
    return _read(".." + targets["files"][0])


@probe
def file_by_handle(targets: Targets) -> str:
    """Past all directories: handles name files by their number."""
    handle = struct.pack("<IiII", 8, 1, 2, 0)
    root = os.open("/", os.O_RDONLY)
    try:
        call("open_by_handle_at", root, handle, os.O_RDONLY)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
    return "allowed to ask"  # whether or not this very handle is a file's


@probe
def write_file(targets: Targets) -> str:
    path = Path(targets["folder"], "written")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return str(path)


@probe
def other_processes(targets: Targets) -> str:
    return _first(_read, [f"/proc/{pid}/environ" for pid in (targets["daemon"], targets["vmm"])])


@probe
def open_devices(targets: Targets) -> str:
    return _first(lambda path: str(os.open(path, os.O_RDWR)), targets["devices"])


@probe
def make_device(targets: Targets) -> str:
    """Physical memory, by a device node of one's own."""
    path = Path(targets["folder"], "mem")
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 1))
    return str(path)


# --- processes -----------------------------------------------------------------------------------------------


@probe
def signal_others(targets: Targets) -> str:
    def signal_to(pid: int) -> str:
        os.kill(pid, 0)
        return "may be ended"

    return _first(signal_to, [targets["vmm"], targets["daemon"]])


@probe
def trace(targets: Targets) -> str:
    return _first(lambda pid: str(call("ptrace", PTRACE_SEIZE, pid, 0, 0)), targets["victims"])


@probe
def read_memory(targets: Targets) -> str:
    return _copy("process_vm_readv", targets["reads"], targets["address"])


@probe
def write_memory(targets: Targets) -> str:
    return _copy("process_vm_writev", targets["maker"], targets["scratch"])


@probe
def take_descriptor(targets: Targets) -> str:
    def take(pid: int) -> str:
        return str(call("pidfd_getfd", call("pidfd_open", pid, 0), 0, 0))

    return _first(take, targets["victims"])


@probe
def move_others(targets: Targets) -> str:
    """To processors of another domain, or off them."""
    def move(pid: int) -> str:
        os.sched_setaffinity(pid, os.sched_getaffinity(0))
        return "moved"

    return _first(move, targets["victims"])


@probe
def fork(targets: Targets) -> str:
    pid = call("fork", signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "a process"


@probe
def execute(targets: Targets) -> str:
    """Another program in this process's place; in a child of its own where there can be one."""
    pid = os.posix_spawn(targets["program"], [targets["program"]], {})
    os.waitpid(pid, 0)
    return "executed"


@probe
def become_root(targets: Targets) -> str:
    os.setresuid(0, 0, 0)
    return "root"


# --- other ways out ------------------------------------------------------------------------------------------


@probe
def connect_inet(targets: Targets) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.connect(("127.0.0.1", targets["port"]))
        return "connected"


@probe
def connect_abstract(targets: Targets) -> str:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect("\0" + targets["abstract"])
        return "connected"


@probe
def connect_vsock(targets: Targets) -> str:
    """To the agent of another domain's guest, or its host."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as stream:
        stream.settimeout(2)
        stream.connect((targets["cid"], targets["vsock_port"]))
        return "connected"


@probe
def netlink(targets: Targets) -> str:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.bind((0, 0))
        # RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP
        kernel.send(struct.pack("<IHHII16x", 32, 18, 0x301, 1, 0))
        answer = kernel.recv(1 << 16)
        if targets["card"].encode() not in answer:
            raise OSError(errno.ENODEV, "no card of the host's")
        return "the host's cards"


@probe
def packets(targets: Targets) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300) as raw:
        raw.bind((targets["card"], 0))
        return "all that passes"


@probe
def mount(targets: Targets) -> str:
    call("mount", b"x", targets["folder"].encode(), b"tmpfs", 0, b"")
    return "mounted"


@probe
def enter_namespace(targets: Targets) -> str:
    call("setns", call("pidfd_open", targets["daemon"], 0), CLONE_NEWNET)
    return "the daemon's network"


@probe
def new_user_namespace(targets: Targets) -> str:
    """Where one is root, and the kernel has more to attack."""
    call("unshare", CLONE_NEWNET)
    return "made"


@probe
def keys(targets: Targets) -> str:
    """A key of the session's, as other processes might find it."""
    # KEY_SPEC_SESSION_KEYRING
    return str(call("add_key", b"user", b"vambrace", b"x", 1, -3))


@probe
def shared_memory(targets: Targets) -> str:
    segment = call("shmget", targets["segment"], 4096, 0)
    return str(call("shmat", segment, 0, 0))


@probe
def watch_files(targets: Targets) -> str:
    return str(call("inotify_init1", 0))


@probe
def kernel_programs(targets: Targets) -> str:
    """BPF, performance counters and rings: the parts of the kernel that were broken most often."""
    # struct perf_event_attr: software, its size, context switches
    attributes = struct.pack("<IIQ", 1, 64, 3).ljust(64, b"\0")
    for name, arguments in (
        ("io_uring_setup", (1, bytes(120))),
        ("perf_event_open", (attributes, 0, -1, -1, 0)),
        ("bpf", (0, struct.pack("<IIIII", 2, 4, 4, 1, 0).ljust(72, b"\0"), 72)),
    ):
        try:
            return f"{name} {call(name, *arguments)}"
        except OSError as error:
            last = error
    raise last


@probe
def another_userfaultfd(targets: Targets) -> str:
    return str(call("userfaultfd", 0))


@probe
def memory_becomes_code(targets: Targets) -> str:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        return "code"


@probe
def terminal_input(targets: Targets) -> str:
    """A request of no device that a VMM has (TIOCGWINSZ of nothing: it may be asked, or not)."""
    try:
        fcntl.ioctl(0, 0x5413, bytes(8))
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
    return "asked"


def _first(attempt: Callable[[Any], str], targets: list[Any]) -> str:
    """The result of the first that succeeds; raises what the last one raised."""
    last = OSError(errno.EINVAL, "nothing to try")
    for target in targets:
        try:
            return f"{target}: {attempt(target)}"
        except OSError as error:
            last = error
    raise last


def _read(path: str) -> str:
    file = os.open(path, os.O_RDONLY)
    try:
        return f"{len(os.read(file, 4096))} bytes"
    finally:
        os.close(file)


def _copy(name: str, pid: int, address: int) -> str:
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("<QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("<QQ", address, 8)
    call(name, pid, local, 1, remote, 1, 0)
    return buffer.raw.hex()
