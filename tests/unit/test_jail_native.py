"""The jail, on this machine: what a process in it can do, and how it gets in. Needs root, and namespaces."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import platform
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from testbed import attacks
from vambrace.errors import DomainError, HostError
from vambrace.host.launcher import JailLauncher
from vambrace.host.vmm import Died, Event, Vmm
from vambrace.jail import calls, identities, kinds, linux, walls
from vambrace.kvm import abi
from vambrace.virtio import net, vhost, vsock

ROOT = Path(__file__).parents[2]
#: The launcher's process, but for the attacked VMM.
SERVICE = """
import socket, sys
from testbed.attacker import launcher_of
from vambrace.jail import service
service.FAREWELL_SECONDS = 0.5
with socket.socket(fileno=int(sys.argv[1])) as daemon:
    service.Service(launcher_of(), daemon).serve()
"""


def _can_wall_in() -> bool:
    """Whether this process may make namespaces: a container's root may not always."""
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.geteuid() == 0 and os.waitpid(pid, 0)[1] == 0


pytestmark = pytest.mark.skipif(not _can_wall_in(), reason="needs root, and leave to make namespaces")


# --- what is possible inside ---------------------------------------------------------------------------------


def attacked() -> dict[str, dict[str, str]]:
    """What came of each probe: free, walled, and jailed (testbed/attacker.py)."""
    cards = [name for _, name in socket.if_nameindex() if name != "lo"]
    with subprocess.Popen(["sleep", "600"]) as bystander:
        targets = {
            "files": [str(ROOT / "pyproject.toml"), "/etc/passwd"],
            "daemon": bystander.pid,
            "vmm": bystander.pid,
            "victims": [bystander.pid],
            "devices": ["/dev/null", "/dev/kvm", "/dev/userfaultfd"],
            "cid": 1,
            "vsock_port": 4050,
            "card": cards[0] if cards else "none",
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "testbed.attacker", json.dumps({"targets": targets})],
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


#: What this machine may not have or not allow, to root either.
MACHINE = {"connect_vsock", "kernel_programs", "netlink", "packets", "another_userfaultfd", "make_device"}
#: What walls alone do not refuse, because it reaches nothing of anybody else's, or has no namespaces (vsock).
WITHOUT_A_FILTER = {
    *("connect_vsock", "fork", "keys", "kernel_programs", "memory_becomes_code", "terminal_input", "watch_files"),
}
#: What libraries try too, so that the filter answers it. There is nothing that it could reach.
ANSWERED = {
    *("read_files", "list_root", "file_by_handle", "write_file", "other_processes", "open_devices", "move_others"),
}


def test_attacks_from_inside() -> None:
    """Without a jail they succeed; in it the filter ends whoever tries, and without that one the walls still stand."""
    results = attacked()
    failed = {name for name, result in results["free"].items() if not result.startswith("reached ")}
    assert results["free"].keys() == attacks.PROBES.keys() and failed <= MACHINE, results["free"]
    through = {name: result for name, result in results["walled"].items() if not result.startswith("refused ")}
    assert through.keys() <= WITHOUT_A_FILTER, through
    killed = {name for name, result in results["jailed"].items() if result == f"ended {-signal.SIGSYS}"}
    refused = {name for name, result in results["jailed"].items() if result.startswith("refused ")}
    assert killed == attacks.PROBES.keys() - ANSWERED and refused == ANSWERED, results["jailed"]


# --- the filter ----------------------------------------------------------------------------------------------


#: Makes each system call of a list in a child of its own, bound by a filter, and prints what came of them.
CALLER = """
import ctypes, json, os, sys
from vambrace.pager import restrict_calls
libc, program = ctypes.CDLL(None, use_errno=True), bytes.fromhex(sys.argv[1])
ends = []
for call in json.loads(sys.argv[2]):
    words = [ctypes.c_long(word) for word in call + [0] * (7 - len(call))]
    pid = os.fork()
    if pid == 0:
        try:
            restrict_calls(program)
            os._exit(ctypes.get_errno() if libc.syscall(*words) == -1 else 0)
        finally:
            os._exit(255)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(ends))
"""


def fates(*wanted: tuple[int, ...]) -> list[int]:
    """What becomes of system calls (number, arguments): 0 for one that was made, an error's number, or -SIGSYS."""
    words = [sys.executable, "-c", CALLER, calls.program().hex(), json.dumps(wanted)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    ends: list[int] = json.loads(done.stdout)
    return ends


def number_of(name: str) -> int:
    return int(calls.seccomp.resolve_syscall(calls.seccomp.Arch.NATIVE, name))


def test_every_other_call_ends_the_process() -> None:
    conditional = {"mmap", "mprotect", "clone", "sched_setscheduler", "prctl", "newfstatat", "fcntl", "ioctl"}
    # Two that only what the kernel plants in programs makes: it lets them pass all filters (x86, Linux 6.11).
    known = {335, 336} if platform.machine() == "x86_64" else set()
    known |= {number_of(name) for name in (*calls.FREELY, *calls.ABSENT, *conditional)}
    others = [number for number in range(512) if number not in known]
    ends = dict(zip(others, fates(*((number,) for number in others)), strict=True))
    assert {number: end for number, end in ends.items() if end != -signal.SIGSYS} == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mmap", (0, 4096, 7, 0x22, -1)),
        ("mprotect", (0, 4096, 4)),
        ("clone", (signal.SIGCHLD,)),
        ("clone", (0x1000_0000,)),
        ("clone", (0x003D_0F00 | 0x1000_0000,)),
        ("sched_setscheduler", (0, 1)),
        ("fcntl", (0, 8)),  # F_SETOWN: signals to others
        ("fcntl", (0, 1024)),  # F_SETLEASE
        ("ioctl", (0, 0x5412)),  # TIOCSTI
        ("ioctl", (0, 0x3B68)),  # VFIO_GROUP_SET_CONTAINER
    ],
)
def test_what_calls_may_not_be_asked_for(name: str, arguments: tuple[int, ...]) -> None:
    assert fates((number_of(name), *arguments)) == [-signal.SIGSYS]


@pytest.mark.parametrize(
    ("name", "arguments", "end"),
    [
        ("getpid", (), 0),
        ("mmap", (0, 4096, 3, 0x22, -1), 0),
        ("fcntl", (0, 3), 0),
        ("ioctl", (-1, abi.RUN), errno.EBADF),
        ("ioctl", (-1, (-1 << 32) | abi.RUN), errno.EBADF),
        ("clone3", (), errno.ENOSYS),
        ("openat", (), errno.ENOENT),
        ("prctl", (4,), errno.EPERM),  # PR_SET_DUMPABLE
        ("prlimit64", (), errno.EPERM),
    ],
)
def test_what_is_let_pass_or_answered(name: str, arguments: tuple[int, ...], end: int) -> None:
    assert fates((number_of(name), *arguments)) == [end]


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter of libseccomp's answers (linux/seccomp.h): of classic BPF, the instructions that it uses."""
    words = [word & (1 << 64) - 1 for word in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *words)
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        code, yes, no, constant = instructions[position]
        position += 1
        match code:
            case 0x20:  # load a word
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:  # and
                accumulator &= constant
            case 0x05:  # jump
                position += constant
            case 0x15 | 0x25 | 0x35:  # if equal, greater, greater or equal
                met = {0x15: accumulator == constant, 0x25: accumulator > constant, 0x35: accumulator >= constant}
                position += yes if met[code] else no
            case 0x06:  # return
                return int(constant)
            case _:
                raise AssertionError(f"instruction {code:#x}")


def test_the_filter_of_arm64() -> None:
    """Hosts are arm64, this machine perhaps is not: the same rules, by arm64's numbers."""
    machine = 0xC000_00B7  # AUDIT_ARCH_AARCH64
    program = calls.program(calls.seccomp.Arch.AARCH64)
    kill, allow = 0x8000_0000, 0x7FFF_0000
    passed = {number for number in range(512) if verdict(program, machine, number) == allow}
    # eventfd2, epoll, close, lseek, read … ; futex, tgkill, sendmsg, mmap, madvise, getrandom, rseq
    assert {19, 20, 21, 22, 57, 62, 63, 64, 98, 131, 211, 222, 233, 278, 293} <= passed and len(passed) < 60
    for number in {index for _, index in attacks.NUMBERS.values()} - {attacks.NUMBERS["fork"][1]}:
        assert verdict(program, machine, number) == kill
    assert verdict(program, machine, 220, 0x003D_0F00) == allow  # clone: a thread
    assert verdict(program, machine, 220, signal.SIGCHLD) == kill
    assert verdict(program, machine, 222, 0, 4096, 7) == kill  # mmap
    assert verdict(program, machine, 56) == 0x0005_0000 | errno.ENOENT  # openat
    for request in calls.requests():
        assert verdict(program, machine, 29, 3, request) == allow
    assert verdict(program, machine, 29, 3, 0x5412) == kill
    assert verdict(program, 0x4000_0028, 63) == kill, "a call of 32-bit Arm"


def test_every_request_of_a_device_is_listed() -> None:
    """A new ioctl that is not in the list would end the VMM that makes it."""
    kvm = {value for value in vars(abi).values() if type(value) is int and value >> 8 & 0xFF == 0xAE}
    assert kvm <= set(calls.requests())
    for module in (vhost, vsock, net):
        asked = {value for name, value in vars(module).items() if name.startswith(("_SET", "_GET"))}
        assert asked and asked <= set(calls.requests())
    for name, kind in kinds.KINDS.items():
        assert kind.requests or not kind.device, name


# --- identities and walls ------------------------------------------------------------------------------------


def test_identities_are_used_again_as_late_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "COUNT", 4)
    lively = identities.FIRST + 1
    monkeypatch.setattr(identities, "users", lambda: iter([lively]))
    ours = identities.Identities()
    found = [ours.next([]) - identities.FIRST for _ in range(4)]
    assert found == [0, 2, 3, 0]
    assert ours.next([identities.FIRST + 2]) == identities.FIRST + 3
    with pytest.raises(HostError, match="in use"):
        ours.next(range(identities.FIRST, identities.FIRST + 4))


def test_users_of_living_processes() -> None:
    """Each of the four that a process has: one that could come back to it is in use."""
    marker = identities.FIRST + identities.COUNT - 7
    program = f"import os, sys; os.setresuid(0, 0, {marker}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert marker in set(identities.users())
        process.stdin.close()
    assert marker not in set(identities.users())


def test_check_believes_the_kernel_only() -> None:
    with pytest.raises(HostError, match="not shut in"):
        walls.check(os.getpid(), os.getuid())


def test_python_reads_what_it_needs_and_never_everything() -> None:
    reads = walls.python_reads("/", "/nowhere")
    assert Path("/") not in reads and Path("/nowhere") not in reads
    for path in (ROOT / "vambrace", Path(sys.executable).resolve(), Path(os.__file__)):
        assert any(path == part or part in path.parents for part in reads)


# --- the launcher's process ----------------------------------------------------------------------------------


def with_launcher(test: Callable[[JailLauncher], Awaitable[None]], program: str = SERVICE) -> None:
    async def body() -> None:
        os.environ["PYTHONPATH"] = str(ROOT)
        launcher = JailLauncher([sys.executable, "-P", "-B", "-c", program])
        try:
            await launcher.open()
            async with asyncio.timeout(60):
                await test(launcher)
        finally:
            launcher.close()

    asyncio.run(body())


@pytest.fixture(autouse=True)
def path_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def nobody(event: Event) -> None:
    pass


def status_of(pid: int) -> dict[str, list[str]]:
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.split() for name, value in lines}


def test_two_vmms_of_a_launcher(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(launcher: JailLauncher) -> None:
        events: list[Event] = []
        first, second = await asyncio.gather(
            Vmm.spawn(launcher, events.append, cpus=[min(os.sched_getaffinity(0))]), Vmm.spawn(launcher, nobody)
        )
        users = {status_of(vmm.pid)["Uid"][0] for vmm in (first, second)}
        assert len(users) == 2 and all(int(user) >= identities.FIRST for user in users)
        assert os.sched_getaffinity(first.pid) == {min(os.sched_getaffinity(0))}
        assert list(Path(f"/proc/{first.pid}/root").iterdir()) == []
        for vmm in (first, second):
            with pytest.raises(DomainError, match="not possible while empty"):
                await vmm.request("stats", 10)
        for pid in (first.pid, second.pid):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert len(re.findall(r"^Max (?:core )?file size +0 +0 ", limits, re.M)) == 2
            links = [str(link.readlink()).split(":")[0] for link in Path(f"/proc/{pid}/fd").iterdir()]
            assert {*links} == {"/dev/null", "pipe", "socket", "anon_inode"} and links.count("socket") == 1
        await second.destroy()
        assert not Path(f"/proc/{second.pid}").exists()
        with pytest.raises(DomainError, match="gone"):
            await first.request("attack", 10, probe="trace", targets={"victims": [1]})
        assert [type(event) for event in events] == [Died]
        await first.destroy()

    with_launcher(test)
    assert "was ended by signal 31" in capfd.readouterr().err


def test_a_vmm_that_never_gets_in() -> None:
    """Its own words are the reason that whoever wanted it hears."""
    broken = SERVICE.replace("launcher_of()", "Launcher(['/nowhere/python'])").replace(
        "import socket", "from vambrace.jail.launcher import Launcher; import socket"
    )

    async def test(launcher: JailLauncher) -> None:
        with pytest.raises(DomainError, match="cannot be started: .*No such file"):
            await Vmm.spawn(launcher, nobody)

    with_launcher(test, broken)


def test_a_vmm_that_ends_on_its_way_in() -> None:
    broken = SERVICE.replace("launcher_of()", "Launcher([sys.executable, '-c', 'raise SystemExit(3)'])").replace(
        "import socket", "from vambrace.jail.launcher import Launcher; import socket"
    )

    async def test(launcher: JailLauncher) -> None:
        for _ in range(2):
            with pytest.raises(DomainError, match="ended on its way in"):
                await Vmm.spawn(launcher, nobody)

    with_launcher(test, broken)


def test_a_launcher_that_dies() -> None:
    """Its VMMs live on, and are seen to end; there are no new ones."""

    async def test(launcher: JailLauncher) -> None:
        vmm = await Vmm.spawn(launcher, nobody)
        launcher._process.kill()
        with pytest.raises(DomainError, match="launcher of VMMs is gone"):
            while True:
                await (await Vmm.spawn(launcher, nobody)).destroy()
        with pytest.raises(DomainError, match="not possible while empty"):
            await vmm.request("stats", 10)
        await vmm.destroy()

    with_launcher(test)


def test_a_launcher_that_does_not_start() -> None:
    async def test(launcher: JailLauncher) -> None:
        raise AssertionError("it did")

    with pytest.raises(HostError, match="does not start"):
        with_launcher(test, "raise SystemExit(1)")


def test_vmms_end_with_their_daemon() -> None:
    pids = []

    async def test(launcher: JailLauncher) -> None:
        pids.append((await Vmm.spawn(launcher, nobody)).pid)

    with_launcher(test)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_daemon_that_ends_before_it_looks(capfd: pytest.CaptureFixture[str]) -> None:
    launcher = JailLauncher()
    assert select.select([launcher._socket], [], [], 60)[0]
    launcher.close()
    assert launcher._process.returncode == 0
    assert capfd.readouterr().err == ""


def test_nothing_without_root() -> None:
    program = "from vambrace.jail import __main__; import os; os.setresuid(9, 9, 9); exit(__main__.main(['0']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0 and "by root only" in done.stderr


def test_a_process_that_cannot_be_made() -> None:
    """The launcher goes on: whoever comes next is the first process of a namespace of its own."""
    program = """
import os, sys
from testbed.attacker import Vmm, launcher_of
launcher, fork = launcher_of(), os.fork
def refuse():
    raise BlockingIOError
os.fork = refuse
for _ in range(2):
    try:
        launcher.start(0, 2)
    except BlockingIOError:
        print("refused")
os.fork = fork
with Vmm(launcher) as vmm:
    status = open(f"/proc/{vmm._newcomer.pid}/status").read()
    print(next(line for line in status.splitlines() if line.startswith("NSpid")).split()[-1])
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "refused", "1"], done.stderr
