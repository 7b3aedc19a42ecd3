"""Overlaps of real processes, planted one by one, are found in the kernel's own numbers; without them, nothing is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vambrace.errors import PartitionError
from vambrace.partition import frames, overlap
from vambrace.partition.overlap import Domain, Verification

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="page frame numbers are shown to root only")

CPUS = tuple(sorted(os.sched_getaffinity(0)))

# Takes so much private memory, reads some that it never writes, does what it is told, says so, and waits.
PROGRAM = """
import json, mmap, os, signal, sys, threading
pages = int(sys.argv[1])
mine = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
mine[::4096] = bytes([1]) * pages
untouched = mmap.mmap(-1, 1 << 23, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
assert not any(untouched[::4096])
threading.Thread(target=signal.pause, daemon=True).start()
exec(sys.argv[2])
print(json.dumps(globals().get("said")), flush=True)
signal.pause()
"""


class Process:
    def __init__(self, program: str, pages: int, pass_fds: tuple[int, ...]) -> None:
        command = [sys.executable, "-c", PROGRAM, str(pages), program]
        # Nothing that two of them have in common: this test's own standard error would be.
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, pass_fds=pass_fds, **streams)  # type: ignore[call-overload]
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        self.said = json.loads(line)
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.communicate()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Process] = []

    def begin(program: str = "", pages: int = 1000, pass_fds: tuple[int, ...] = ()) -> Process:
        running.append(Process(program, pages, pass_fds))
        return running[-1]

    yield begin
    for process in running:
        process.end()


def look(*processes: Process, cpus: tuple[int, ...] = CPUS, **changes: object) -> Verification:
    names = ("first", "second", "third")
    domains = [Domain(name, (process.pid,), frozenset(cpus)) for name, process in zip(names, processes, strict=False)]
    return overlap.verify([Domain(**{**vars(domain), **changes}) for domain in domains])  # type: ignore[arg-type]


def only(found: Verification) -> str:
    assert len(found.findings) == 1, found.findings
    assert not found.passed
    return found.findings[0]


def test_nothing_is_found_between_separate_processes(start: Start) -> None:
    """They run the same programs, read zeros that they never wrote, and have /dev/null open."""
    found = look(start(), start(), start(pages=1))
    assert found.findings == () and found.passed
    assert found.domains == ("first", "second", "third")
    assert found.threads == 6 and found.descriptors >= 3


# Memory


def count(found: Verification) -> int:
    """How many page frames the first and the second have in common."""
    lines = [line for line in found.findings if line.endswith(" page frames in common")]
    assert len(lines) == 1 and lines[0].startswith("first and second have "), found.findings
    return int(lines[0].split()[4])


MAPPED = "import mmap; shared = mmap.mmap({}, 50 * 4096, flags=mmap.MAP_SHARED, prot={})\n"


@pytest.fixture
def memory() -> Iterator[int]:
    """A file in memory, of 50 pages."""
    descriptor = os.memfd_create("planted")
    os.ftruncate(descriptor, 50 * 4096)
    os.set_inheritable(descriptor, True)
    yield descriptor
    os.close(descriptor)


def shared(descriptor: int, then: str, write: bool = True) -> str:
    protection = "mmap.PROT_READ | mmap.PROT_WRITE" if write else "mmap.PROT_READ"
    return MAPPED.format(descriptor, protection) + f"{then}\nos.close({descriptor})"


def test_shared_memory(start: Start, memory: int) -> None:
    """Both write; and one that only reads is one too many."""
    writes = shared(memory, "shared[::4096] = bytes([1]) * 50")
    first = start(writes, pass_fds=(memory,))
    found = look(first, start(writes, pass_fds=(memory,)))
    assert count(found) == 50
    assert "first: 50 of its pages are mapped by another process as well" in found.findings
    reader = start(shared(memory, "assert all(shared[::4096])", write=False), pass_fds=(memory,))
    assert count(look(reader, first)) == 50


def test_memory_of_a_domain_that_a_stranger_maps(start: Start, memory: int) -> None:
    """The other process is no domain: the kernel still says that the page is mapped twice."""
    first = start(shared(memory, "shared[::4096] = bytes([1]) * 50"), pass_fds=(memory,))
    assert look(first, start()).passed
    start(shared(memory, "assert all(shared[:4 * 4096:4096])", write=False), pass_fds=(memory,))
    assert only(look(first, start())).startswith("first: ")
    assert "mapped by another process as well" in only(look(first, start()))


def test_memory_after_a_fork(start: Start) -> None:
    """Private memory, copied when it is written, is one and the same until then."""
    forked = start("child = os.fork()\nif not child:\n    signal.pause()\nsaid = child", pages=500)
    try:
        domains = [Domain("first", (forked.pid,), frozenset(CPUS)), Domain("second", (forked.said,), frozenset(CPUS))]
        found = overlap.verify(domains)
        assert count(found) >= 500
        assert any(line.startswith("first: ") and "mapped by another" in line for line in found.findings)
    finally:
        os.kill(forked.said, signal.SIGKILL)


def test_a_file_that_both_map(start: Start, tmp_path: Path) -> None:
    """Its descriptors are closed: only the page map tells. If neither can write, it is no overlap."""
    path = tmp_path / "file"
    path.write_bytes(bytes(50 * 4096))
    opens = f"descriptor = os.open({str(path)!r}, os.O_RDWR)\n"
    reads = opens + MAPPED.format("descriptor", "mmap.PROT_READ") + "assert not any(shared[::4096])\n"
    reads += "os.close(descriptor)"
    writes = reads.replace("mmap.PROT_READ", "mmap.PROT_READ | mmap.PROT_WRITE").replace(
        "assert not any(shared[::4096])", "shared[::4096] = bytes([1]) * 50"
    )
    # An mmap object keeps a duplicate of the descriptor; take it away.
    close = "\nfor number in range(3, 20):\n    try: os.close(number)\n    except OSError: pass"
    first, second = start(reads + close), start(reads + close)
    assert look(first, second).passed
    third = start(writes + close)
    assert count(look(first, third)) == 50


def test_what_is_only_there_for_a_moment_is_no_overlap(start: Start) -> None:
    """Two processes that take and give back memory all the time: frames wander, and are never in both."""
    churn = """
def go():
    while True:
        memory = mmap.mmap(-1, 2000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[::4096] = bytes(2000)
        memory.close()
threading.Thread(target=go, daemon=True).start()
"""
    assert look(start(churn), start(churn)).passed


def test_ended_processes(start: Start) -> None:
    first, second = start(), start()
    first.end()
    assert look(first, second).passed, "no finding about what is not there any more"


def test_frame_numbers_are_needed(start: Start) -> None:
    """Without the right to see frame numbers it is an error, never a pass."""
    process = start()
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            frames.check({"first": (process.pid,)})
        except PartitionError as error:
            os._exit(10 if "page frame numbers" in error.message else 11)
        finally:
            os._exit(12)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10


def test_much_memory_is_looked_at_in_seconds(start: Start) -> None:
    """512 MiB, in pages of 4096 bytes where the kernel has no huge ones."""
    big = start("more = mmap.mmap(-1, 1 << 29, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
                "more[::4096] = bytes(1 << 17)", pages=1)  # fmt: skip
    began = time.monotonic()
    assert frames.check({"big": (big.pid,), "small": (start(pages=10).pid,)}) == {}
    assert time.monotonic() - began < 10


# Processors


def test_a_thread_on_another_processor(start: Start) -> None:
    first = start(f"os.sched_setaffinity(threading.enumerate()[1].native_id, {{{CPUS[-1]}}})")
    assert look(first, cpus=CPUS).passed
    line = only(look(first, cpus=(4000,))) if len(CPUS) == 1 else None
    if line is None:
        found = look(first, cpus=CPUS[:-1])
        assert len(found.findings) == 2, "its main thread may run everywhere, too"
        assert all(f"may run on processors {CPUS[-1]}, not its own" in finding for finding in found.findings)


def test_processors_that_two_were_given(start: Start) -> None:
    mine = Domain("first", (start().pid,), frozenset(CPUS), alone=True)
    found = overlap.verify([mine, Domain("second", (start().pid,), frozenset(CPUS))])
    assert f"first and second were both given processors {overlap.spell(CPUS)}" in found.findings


def test_a_stranger_on_a_domain_s_processor(start: Start) -> None:
    """Threads of this test may run on the processor that the domain should have alone."""
    cpu = CPUS[-1]
    first = start(f"[os.sched_setaffinity(thread.native_id, {{{cpu}}}) for thread in threading.enumerate()]")
    found = overlap.verify([Domain("first", (first.pid,), frozenset((cpu,)), alone=True)])
    assert only(found).startswith(f"first: threads of others may run on its processor {cpu}: ")


def test_a_domain_outside_its_group(start: Start) -> None:
    first = start()
    group = next(line[4:] for line in Path(f"/proc/{first.pid}/cgroup").read_text().splitlines() if line[:4] == "0::/")
    assert look(first, cgroup=group).passed
    assert "not in its own" in only(look(first, cgroup="vambrace-elsewhere"))


# Files


def test_a_file_that_one_writes(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    read, write = (f"kept = os.open({str(disk)!r}, os.{mode})" for mode in ("O_RDONLY", "O_RDWR"))
    assert look(start(read), start(read)).passed, "a disk that both only read is no channel"
    for programs in ((read, write), (write, read), (write, write)):
        line = only(look(*map(start, programs)))
        assert line == f"first and second have the same file open for writing: {disk}"
    copy = tmp_path / "copy"
    copy.write_bytes(bytes(4096))
    assert look(start(write), start(write.replace("disk", "copy"))).passed


def test_a_device(start: Start) -> None:
    """A terminal stands for any character device: what is not common by its nature is one domain's."""
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    takes = f"kept = os.open({name!r}, os.O_RDWR | os.O_NOCTTY)"
    try:
        assert look(start(takes), start()).passed
        assert only(look(start(takes), start(takes))) == f"first and second have the same device open: {name}"
        common = "kept = [os.open(path, os.O_RDONLY) for path in ('/dev/zero', '/dev/urandom')]"
        assert look(start(common), start(common)).passed
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no taps here")  # noqa: PTH110
def test_a_network_card(start: Start) -> None:
    """Every card is of one device file: what counts is the interface that the descriptor is of."""
    taps = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(3)]
    try:
        for tap in taps[:2]:
            fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"planted%d", 0x1002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
        first = start(pass_fds=(taps[0], taps[2]))
        assert look(first, start(pass_fds=(taps[1], taps[2]))).passed
        line = only(look(first, start(pass_fds=(taps[0],))))
        assert line.startswith("first and second have the same network card open: planted")
    finally:
        for tap in taps:
            os.close(tap)


def test_iommu_groups(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal stands for a group's device file: it is its domain's, and nobody else has it open."""
    ours, theirs = os.openpty()
    folder, _, number = os.ttyname(theirs).rpartition("/")
    monkeypatch.setattr(overlap, "VFIO", f"{folder}/")
    takes = f"kept = os.open({os.ttyname(theirs)!r}, os.O_RDWR | os.O_NOCTTY)"
    try:
        mine = {"iommu_groups": frozenset((number,))}
        assert look(start(takes), **mine).passed
        line = only(look(start(takes)))
        assert line == f"first: it has IOMMU group {number} open, whose devices it was not given"
        found = look(start(takes), start(takes), **mine)
        assert only(found) == f"first and second have the same device open: {folder}/{number}"
    finally:
        os.close(ours)
        os.close(theirs)


def test_sockets_and_pipes(start: Start) -> None:
    one, other = socket.socketpair()
    reader, writer = os.pipe()
    with one, other:
        found = look(start(pass_fds=(one.fileno(), writer)), start(pass_fds=(one.fileno(), reader)))
        assert sorted(line.rpartition(":")[0].rpartition(":")[0] for line in found.findings) == [
            "first and second have the same pipe open",
            "first and second have the same socket open",
        ]
        # The two ends of one connection are two sockets: each domain's to its own daemon is such a one.
        assert look(start(pass_fds=(one.fileno(),)), start(pass_fds=(other.fileno(),))).passed
    os.close(reader)
    os.close(writer)


def test_names_are_made_harmless(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "disk\x1b[31m\n"
    path.write_bytes(b"x")
    write = f"kept = os.open({str(path)!r}, os.O_RDWR)"
    line = only(look(start(write), start(write)))
    assert line.isprintable()
