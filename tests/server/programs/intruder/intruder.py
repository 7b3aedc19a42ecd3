"""Tries everything that only the agent may do, and writes what came of each attempt.

An attempt raises OSError where it is refused, and returns what it got where it is not. The controls are allowed to
everybody: they show that an attempt that succeeds is seen as such.
"""

import ctypes
import glob
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

RESULT = "/results/intruder/attempts.json"
AGENT_PORT = 4050
HOST, LOCAL, ANY = 2, 1, 0xFFFFFFFF
# arm64 numbers (asm-generic/unistd.h)
CALLS = {
    "umount2": 39,
    "mount": 40,
    "chroot": 51,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "syslog": 116,
    "ptrace": 117,
    "reboot": 142,
    "sethostname": 161,
    "set_mempolicy": 237,
    "migrate_pages": 238,
    "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "bpf": 280,
    "userfaultfd": 282,
    "io_uring_setup": 425,
    "fsopen": 430,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
}
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
MPOL_BIND = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
outcomes: dict[str, dict[str, object]] = {}


def call(name: str, *arguments: object) -> int:
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(CALLS[name]), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def attempt(name: str, action: Callable[..., object], *arguments: object) -> None:
    try:
        got = action(*arguments)
    except OSError as error:
        outcomes[name] = {"refused": True, "detail": str(error)}
    else:
        outcomes[name] = {"refused": False, "detail": repr(got)[:200]}


def opened(path: str, flags: int) -> str:
    fd = os.open(path, flags | os.O_NONBLOCK)
    os.close(fd)
    return "open"


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(64)


def written(path: str, text: bytes) -> int:
    with open(path, "wb", buffering=0) as file:
        return file.write(text)


def devices() -> None:
    nodes = [path for path in glob.glob("/dev/**", recursive=True) if not os.path.isdir(path)]
    open_to_all = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    for node in sorted(nodes):
        if os.path.basename(node) in open_to_all:
            continue
        attempt(f"read {node}", opened, node, os.O_RDONLY)
        attempt(f"write {node}", opened, node, os.O_WRONLY)
    for port in glob.glob("/dev/vport*"):
        device = os.stat(port).st_rdev
        attempt(f"a node of its own for {port}", os.mknod, "/results/intruder/port", 0o20600, device)
    for disk in glob.glob("/dev/vd?"):
        device = os.stat(disk).st_rdev
        attempt(f"a node of its own for {disk}", os.mknod, "/results/intruder/disk", 0o60600, device)


def vsock() -> None:
    def connect(cid: int, port: int, kind: int) -> str:
        with socket.socket(socket.AF_VSOCK, kind) as connection:
            connection.settimeout(5)
            connection.connect((cid, port))
            return "connected"

    def listen(port: int) -> str:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
            listener.bind((ANY, port))
            listener.listen(1)
            return "listening"

    def made(kind: int) -> str:
        socket.socket(socket.AF_VSOCK, kind).close()
        return "made"

    def compat() -> str:
        """socket(AF_VSOCK) by a 32-bit program, whose calls have other numbers; exit code 42 if it was given one."""
        code = (0xE3A00028, 0xE3A01001, 0xE3A02000, 0xE3007119, 0xEF000000)  # r0..r2, r7 = 281, svc
        code += (0xE3500000, 0xA3A0002A, 0xB3A00007, 0xE3A07001, 0xEF000000)  # r0 = r0 < 0 ? 7 : 42, exit
        text = struct.pack(f"<{len(code)}I", *code)
        size = 52 + 32 + len(text)
        header = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
        header += struct.pack("<HHIIIIIHHHHHH", 2, 40, 1, 0x10054, 52, 0, 0x5000400, 52, 32, 1, 0, 0, 0)
        header += struct.pack("<8I", 1, 0, 0x10000, 0x10000, size, size, 5, 0x1000)
        program = Path("/tmp/compat")
        program.write_bytes(header + text)
        program.chmod(0o700)
        code_ = subprocess.run([program], timeout=20, check=False).returncode
        if code_ != 42:
            raise OSError(f"exit code {code_}")
        return "made"

    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        attempt(f"vsock, kind {kind}", made, kind)
    for port in (1, 1023, 1024, AGENT_PORT, 8443):
        attempt(f"vsock to the host, port {port}", connect, HOST, port, socket.SOCK_STREAM)
    for cid in (LOCAL, 17, 18):
        attempt(f"vsock to the agent by CID {cid}", connect, cid, AGENT_PORT, socket.SOCK_STREAM)
    attempt("vsock, the agent's port", listen, AGENT_PORT)
    attempt("vsock, a port of its own", listen, 5000)
    attempt("vsock by socketpair", socket.socketpair, socket.AF_VSOCK, socket.SOCK_STREAM)
    attempt("vsock by a 32-bit program", compat)


def extend(register: int) -> str:
    with socket.socket(socket.AF_UNIX) as desk:
        desk.connect(os.environ["VAMBRACE_AGENT"])
        desk.sendall(json.dumps({"op": "extend", "register": register, "text": "holding a secret"}).encode() + b"\n")
        reply = json.loads(desk.recv(1 << 10))
    if not reply["ok"]:
        raise PermissionError(reply["error"])
    return str(reply)


def agent() -> None:
    buffer = ctypes.create_string_buffer(64)

    def vector(address: int) -> object:
        return ctypes.byref((ctypes.c_ulong * 2)(address, 64))

    def descriptors() -> str:
        pidfd = call("pidfd_open", 1, 0)
        taken = []
        for fd in range(64):
            try:
                taken.append(call("pidfd_getfd", pidfd, fd, 0))
            except OSError as error:
                refusal = error
        if not taken:
            raise refusal
        return f"took {taken}"

    for name in ("mem", "environ", "maps", "cmdline", "status", "auxv"):
        attempt(f"read /proc/1/{name}", read, f"/proc/1/{name}")
    attempt("set the clock", time.clock_settime, time.CLOCK_REALTIME, time.time())
    attempt("list /proc/1/fd", os.listdir, "/proc/1/fd")
    attempt("list /proc/1/root", os.listdir, "/proc/1/root")
    attempt("ptrace attach", call, "ptrace", PTRACE_ATTACH, 1, 0, 0)
    attempt("ptrace seize", call, "ptrace", PTRACE_SEIZE, 1, 0, 0)
    local = vector(ctypes.addressof(buffer))
    attempt("process_vm_readv", call, "process_vm_readv", 1, local, 1, vector(0x400000), 1, 0)
    attempt("process_vm_writev", call, "process_vm_writev", 1, local, 1, vector(0x400000), 1, 0)
    attempt("the agent's descriptors", descriptors)
    attempt("signal the agent", os.kill, 1, 0)
    attempt("list /run/vambrace", os.listdir, "/run/vambrace")
    for path in ("key.pem", "certificate.pem", "logs/holder/log"):
        attempt(f"read /run/vambrace/{path}", read, f"/run/vambrace/{path}")
    attempt("read the agent's orders", read, "/app/vambrace.json")
    attempt("change the agent", written, "/usr/lib/vambrace/agent/vambrace_agent/monitor.py", b"#")
    for register in range(4):
        attempt(f"extend register {register}", extend, register)
    attempt("list another application's results", os.listdir, "/results/holder")


def privileges() -> None:
    attempt("user 0", os.setresuid, 0, 0, 0)
    attempt("group 0", os.setresgid, 0, 0, 0)
    attempt("another application's user", os.setresuid, 1001, 1001, 1001)
    attempt("group list", os.setgroups, [0])
    attempt("user namespace", call, "unshare", CLONE_NEWUSER)
    attempt("mount namespace", call, "unshare", CLONE_NEWNS)
    attempt("network namespace", call, "unshare", CLONE_NEWNET)
    attempt("mount", call, "mount", b"none", b"/tmp", b"devtmpfs", 0, None)
    attempt("new mount API", call, "fsopen", b"devtmpfs", 0)
    attempt("unmount", call, "umount2", b"/results/intruder", 2)
    attempt("chroot", os.chroot, "/tmp")
    attempt("io_uring", call, "io_uring_setup", 4, ctypes.create_string_buffer(256))
    attempt("bpf", call, "bpf", 5, ctypes.create_string_buffer(128), 128)
    attempt("userfaultfd of the kernel's faults", call, "userfaultfd", 0)
    attempt("kernel log", call, "syslog", 3, ctypes.create_string_buffer(4096), 4096)
    attempt("kernel module", call, "init_module", b"", 0, b"")
    attempt("kexec", call, "kexec_load", 0, 0, None, 0)
    attempt("reboot", call, "reboot", 0xFEE1DEAD, 0x28121969, 0, None)
    attempt("host name", call, "sethostname", b"x", 1)
    attempt("memory of the system's zone", call, "set_mempolicy", MPOL_BIND, node(0), 64)
    attempt("memory of another application's zone", call, "set_mempolicy", MPOL_BIND, node(2), 64)
    attempt("the agent's memory moved", call, "migrate_pages", 1, 64, node(0), node(1))
    for path in ("cgroup.procs", "intruder/cpuset.mems", "intruder/memory.max", "holder/cgroup.kill"):
        attempt(f"write /sys/fs/cgroup/{path}", written, f"/sys/fs/cgroup/{path}", b"0")
    for path in ("kernel/core_pattern", "user/max_user_namespaces", "kernel/io_uring_disabled", "vm/drop_caches"):
        attempt(f"write /proc/sys/{path}", written, f"/proc/sys/{path}", b"0")
    attempt("kernel memory", read, "/proc/kcore")
    attempt("device tree", read, "/sys/firmware/fdt")
    attempt("sysrq", written, "/proc/sysrq-trigger", b"b")


def node(number: int) -> object:
    return ctypes.byref(ctypes.c_ulong(1 << number))


def controls() -> None:
    attempt("control: /dev/null", opened, "/dev/null", os.O_RDWR)
    attempt("control: /proc/self/environ", read, "/proc/self/environ")
    attempt("control: own results", written, "/results/intruder/own", b"mine")
    attempt("control: own results, listed", os.listdir, "/results/intruder")
    attempt("control: unix socket", lambda: socket.socket(socket.AF_UNIX).close())
    attempt("control: own pidfd", call, "pidfd_open", os.getpid(), 0)
    attempt("control: memory of its own zone", call, "set_mempolicy", MPOL_BIND, node(1), 64)


def main() -> None:
    for part in (controls, devices, vsock, agent, privileges):
        part()
        print(f"{part.__name__}: {len(outcomes)} attempts", flush=True)
    Path(RESULT).write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
