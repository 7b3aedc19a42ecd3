"""Pages placed by the colour of their frames, in this process's own memory, with a configured geometry: the effect in a
cache can be seen on hardware only, the frames can be seen here."""

from __future__ import annotations

import base64
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vambrace.errors import PagerError, PartitionError
from vambrace.pager import PAGE_SIZE, Place, Window
from vambrace.partition.colours import Colours, colours_of
from vambrace.partition.geometry import configured
from vambrace.partition.placement import (
    ABSENT,
    MAX_PAGES,
    Memory,
    check_migration,
    choose,
    findings,
    forbid_migration,
    read_frames,
    verify,
)

#: 16 colours.
COLOURS = colours_of(configured({"size": 1 << 20, "line": 64, "ways": 16}))
ME = os.getpid()
#: Pages that are looked at before one gives up. Others' tests leave singles of colours that are not wanted by the
#: ten thousand, and the kernel gives these first; who has enough looks no further.
AMPLE = 1 << 18

pytestmark = [
    pytest.mark.usefixtures("kernel", "still"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root sees page frame numbers"),
]


def placed(
    *zones: tuple[int, int], allowed: tuple[int, ...], most: int = AMPLE, colours: Colours = COLOURS
) -> Window:
    place = Place(lambda address, pages: choose(ME, address, pages, colours, allowed), most, step=1 << 10)
    return Window(zones, os.urandom(32), os.urandom(16), place=place)


def placed_evenly(*zones: tuple[int, int], allowed: tuple[int, ...]) -> Window:
    """Of every colour there is as much, whichever frames the kernel gives first: no more than its share is kept."""
    room = dict.fromkeys(allowed, -(-sum(pages for pages, _ in zones) // len(allowed)))

    def chosen(address: int, count: int) -> bytes:
        wanted = int.from_bytes(choose(ME, address, count, COLOURS, allowed), "little")
        for page, frame in enumerate(read_frames(ME, address, count)):
            if wanted >> page & 1:
                if room[COLOURS.of(frame)]:
                    room[COLOURS.of(frame)] -= 1
                else:
                    wanted -= 1 << page
        return wanted.to_bytes((count + 7) // 8, "little")

    return Window(zones, os.urandom(32), os.urandom(16), place=Place(chosen, AMPLE, step=1 << 10))


def memory_of(window: Window) -> Memory:
    return Memory(ME, window.address, window.side, window.size // PAGE_SIZE)


def test_frames_of_a_mapping() -> None:
    with mmap.mmap(-1, 4 * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
        view = memoryview(mapping)
        address = _address(view)
        mapping[PAGE_SIZE] = 1
        frames = read_frames(ME, address, 4)
        assert [frame == ABSENT for frame in frames] == [True, False, True, True]
        with pytest.raises(PartitionError, match="page 0 of those that process"):
            choose(ME, address, 4, COLOURS, [0])
        mapping[:] = b"x" * len(mapping)
        frames = read_frames(ME, address, 4)
        wanted = [COLOURS.of(frames[0]), COLOURS.of(frames[2])]
        kept = choose(ME, address, 4, COLOURS, wanted)
        assert [bool(kept[0] >> page & 1) for page in range(4)] == [COLOURS.of(frame) in wanted for frame in frames]
        view.release()


def _address(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_processes_and_addresses_that_are_not_there() -> None:
    for process, address in ((1 << 30, 0), (ME, 1 << 62), (ME, 1 << 70), (ME, -PAGE_SIZE)):
        with pytest.raises(PartitionError, match="cannot be read"):
            read_frames(process, address, 1)


def test_a_hostile_question() -> None:
    for address, pages in ((0, 0), (0, -1), (0, MAX_PAGES + 1), (0, 1 << 60), (1, 1), (-PAGE_SIZE, 1), (1 << 62, 1)):
        with pytest.raises(PartitionError):
            choose(ME, address, pages, COLOURS, [1])
    with pytest.raises(PartitionError, match="not there"):
        choose(ME, 0, MAX_PAGES, COLOURS, [1])


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_every_frame_is_of_the_right_colour(percent: int) -> None:
    with placed_evenly((700, percent), (100, 0), allowed=(2, 3, 11)) as window:
        verify({"a": memory_of(window)}, COLOURS, {"a": (2, 3, 11)})
        frames = memory_of(window).frames()
        assert len(set(frames)) == 800 and {COLOURS.of(frame) for frame in frames} == {2, 3, 11}
        data = os.urandom(window.size)
        window.load(0, data)
        assert window.read(0, window.size) == data
        assert memory_of(window).frames() == frames
        wrong = [page for page, frame in enumerate(frames) if COLOURS.of(frame) == 11]
        for held, whose in (({"a": (2, 3)}, "nobody"), ({"a": (2, 3), "b": (11,)}, "b")):
            (found,) = findings({"a": memory_of(window)}, COLOURS, held)
            assert found == (
                f"a: page {wrong[0]} has frame {frames[wrong[0]]:#x} of colour 11, which is {whose}'s, "
                f"and {len(wrong) - 1} more are wrong"
            )
            with pytest.raises(PartitionError, match="of colour 11"):
                verify({"a": memory_of(window)}, COLOURS, held)


def test_two_domains_share_no_colour() -> None:
    held = {"a": tuple(range(8)), "b": tuple(range(8, 12))}
    first, second = held["a"], held["b"]
    with placed((300, 60), allowed=first) as a, placed((200, 0), allowed=second) as b:
        domains = {"a": memory_of(a), "b": memory_of(b)}
        verify(domains, COLOURS, held)
        frames = {name: domain.frames() for name, domain in domains.items()}
        assert not {COLOURS.of(frame) for frame in frames["a"]} & {COLOURS.of(frame) for frame in frames["b"]}
        wrong, common = findings(domains | {"c": domains["a"]}, COLOURS, {**held, "c": ()})
        assert wrong.startswith("c: page 0 has frame ") and wrong.endswith("which is a's, and 299 more are wrong")
        assert common.startswith("c and a have 300 page frames in common, frame 0x")
        assert int(common.split()[10].rstrip(","), 16) in frames["a"]


def test_too_few_pages_of_the_colour() -> None:
    with pytest.raises(PagerError, match="only [0-9]+ of 500 pages have got a page frame") as raised:
        placed((500, 50), allowed=(7,), most=2048)
    assert raised.value.hint


def test_an_error_of_the_helper_ends_the_window() -> None:
    def refuse(address: int, pages: int) -> bytes:
        raise PartitionError("the helper does not like it")

    before = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(3):
        with pytest.raises(PartitionError, match="does not like it"):
            Window([(300, 50)], bytes(32), bytes(16), place=Place(refuse, 4096))
        with pytest.raises(PagerError):
            Window([(300, 50)], bytes(32), bytes(16), place=Place(lambda address, pages: b"\xff", 4096))
    assert len(Path("/proc/self/maps").read_text().splitlines()) < before + 12, "nothing is left mapped"


def test_the_rest_is_given_back() -> None:
    """One page of sixteen is kept, whichever frames the kernel gives: how many must be looked at is no chance."""
    looked, kept = 0, list[int]()

    def one_of_sixteen(address: int, pages: int) -> bytes:
        nonlocal looked
        looked += pages
        kept.extend(read_frames(ME, address, pages)[::16])
        return (b"\x01\x00" * pages)[: (pages + 7) // 8]

    before = _resident()
    with Window([(600, 50)], bytes(32), bytes(16), place=Place(one_of_sixteen, AMPLE, step=1 << 10)) as window:
        assert looked == 10 << 10
        assert memory_of(window).frames() == kept[:600]
        assert _resident() - before < 600 + 1500, "of all that were looked at"
        assert window.stats(0).pages == 600


def _resident() -> int:
    """Pages, counted one by one: what ``statm`` says may be some hundred old."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:")) // PAGE_SIZE


@pytest.fixture
def busy() -> Iterator[tuple[Window, list[int]]]:
    """A placed window that another thread uses all the while."""
    with placed((600, 70), (300, 0), allowed=(0, 5, 6)) as window:
        frames = memory_of(window).frames()
        memory, stop = window.memory(), threading.Event()

        def use() -> None:
            page = 1
            while not stop.is_set():
                page = page * 1103515245 + 12345 & 0x7FFFFFFF
                memory[page % 900 * PAGE_SIZE] = page & 255

        thread = threading.Thread(target=use)
        thread.start()
        yield window, frames
        stop.set()
        thread.join()


def test_verified_while_pages_come_and_go(busy: tuple[Window, list[int]]) -> None:
    window, frames = busy
    for percent in (90, 0, 40, 100, 0, 70):
        window.set_percent(0, percent)
        window.set_percent(1, 100 - percent)
        window.discard(100 * PAGE_SIZE, 300 * PAGE_SIZE)
        verify({"a": memory_of(window)}, COLOURS, {"a": (0, 5, 6)})
        assert memory_of(window).frames() == frames


# --- two processes: one that cannot see frame numbers, and one that names them -------------------------------

#: A VMM's part: it makes a window whose frames the other end of the socket names, and uses it until it is told to end.
DOMAIN = """
import base64, ctypes, json, os, socket, sys, threading
from vambrace.pager import Place, Window

control = socket.socket(fileno=int(sys.argv[1]))

def ask(**question):
    control.send(json.dumps(question).encode())
    return json.loads(control.recv(1 << 16))

def choose(address, pages):
    return base64.b64decode(ask(address=address, pages=pages)["keep"])

def hidden():
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(window.address // 4096 * 8)
        entries = [int.from_bytes(pagemap.read(8), "little") for _ in range(400)]
    return all(entry >> 63 == 0 or entry & (1 << 55) - 1 == 0 for entry in entries)

# All capabilities but those to lock memory and to have a userfaultfd: CAP_SYS_ADMIN would show frame numbers.
for capability in range(64):
    if capability not in (14, 19):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
kept = 1 << 14 | 1 << 19
if ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)):
    sys.exit("capset")
with Window([(400, 50), (100, 0)], os.urandom(32), os.urandom(16), place=Place(choose, 1 << 18)) as window:
    memory, stop = window.memory(), threading.Event()

    def use():
        page = 1
        while not stop.is_set():
            page = page * 1103515245 + 12345 & 0x7FFFFFFF
            memory[page % 500 * 4096] = page & 255

    thread = threading.Thread(target=use)
    thread.start()
    ask(guest=window.address, side=window.side, pages=window.size // 4096, hidden=hidden())
    stop.set()
    thread.join()
"""


class Domain:
    """A process that makes a placed window, answered as the daemon would."""

    def __init__(self, allowed: tuple[int, ...]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60)
        with theirs:
            command = [sys.executable, "-c", DOMAIN, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        while "guest" not in (question := self._receive()):
            keep = choose(self.process.pid, question["address"], question["pages"], COLOURS, allowed)
            self._send(keep=base64.b64encode(keep).decode())
        self.hidden = question["hidden"]
        self.memory = Memory(self.process.pid, question["guest"], question["side"], question["pages"])

    def _receive(self) -> dict[str, Any]:
        return dict(json.loads(self.control.recv(1 << 16)))

    def _send(self, **answer: str) -> None:
        data = json.dumps(answer).encode()
        assert len(data) <= 1 << 16
        self.control.send(data)

    def end(self) -> int:
        self._send()
        with self.control:
            return self.process.wait(60)


def test_domains_in_processes_of_their_own() -> None:
    held = {"a": (0, 1, 2, 3, 4), "b": (5, 6, 7)}
    domains = {name: Domain(colours) for name, colours in held.items()}
    memories = {name: domain.memory for name, domain in domains.items()}
    assert all(domain.hidden for domain in domains.values()), "they do not see the frames that they have"
    frames = {name: memory.frames() for name, memory in memories.items()}
    for _ in range(10):
        verify(memories, COLOURS, held)
        assert {name: memory.frames() for name, memory in memories.items()} == frames
    assert not set(frames["a"]) & set(frames["b"])
    assert [domain.end() for domain in domains.values()] == [0, 0]
    with pytest.raises(PartitionError):
        verify(memories, COLOURS, held)


# --- whatever happens ---------------------------------------------------------------------------------------


class PlacedWindow(RuleBasedStateMachine):
    """Whatever happens to the pages, each keeps its frame, and their contents are right."""

    @initialize(first=st.integers(0, 100), second=st.integers(0, 100))
    def place(self, first: int, second: int) -> None:
        self.window = placed((300, first), (90, second), allowed=(1, 9, 14))
        self.frames = memory_of(self.window).frames()
        self.model = bytearray(self.window.size)
        assert {COLOURS.of(frame) for frame in self.frames} <= {1, 9, 14}

    @rule(page=st.integers(0, 389), count=st.integers(1, 40), data=st.binary(min_size=1, max_size=3))
    def load(self, page: int, count: int, data: bytes) -> None:
        whole = (data * PAGE_SIZE * count)[: min(count, 390 - page) * PAGE_SIZE]
        self.window.load(page * PAGE_SIZE, whole)
        self.model[page * PAGE_SIZE : page * PAGE_SIZE + len(whole)] = whole

    @rule(pages=st.lists(st.integers(0, 389), min_size=1, max_size=60), value=st.integers(0, 255))
    def touch(self, pages: list[int], value: int) -> None:
        memory = self.window.memory()
        for page in pages:
            assert memory[page * PAGE_SIZE + 5] == self.model[page * PAGE_SIZE + 5]
            memory[page * PAGE_SIZE + 5] = self.model[page * PAGE_SIZE + 5] = value

    @rule(page=st.integers(0, 389), count=st.integers(1, 390))
    def discard(self, page: int, count: int) -> None:
        offset, end = page * PAGE_SIZE, min(390, page + count) * PAGE_SIZE
        self.window.discard(offset, end - offset)
        found = self.window.read(offset, end - offset)
        for start in range(0, end - offset, PAGE_SIZE):
            here = slice(offset + start, offset + start + PAGE_SIZE)
            assert found[start : start + PAGE_SIZE] in (bytes(PAGE_SIZE), bytes(self.model[here]))
            self.model[here] = found[start : start + PAGE_SIZE]

    @rule(zone=st.integers(0, 1), percent=st.integers(0, 100) | st.just(0))
    def set_percent(self, zone: int, percent: int) -> None:
        self.window.set_percent(zone, percent)

    @rule(zone=st.integers(0, 1), on=st.booleans())
    def sample(self, zone: int, on: bool) -> None:
        self.window.sample(zone, on)

    @rule()
    def read(self) -> None:
        assert self.window.read(0, self.window.size) == self.model

    @invariant()
    def frames_stay(self) -> None:
        if hasattr(self, "window"):
            assert memory_of(self.window).frames() == self.frames

    def teardown(self) -> None:
        if hasattr(self, "window"):
            assert self.window.failure() is None
            self.window.close()


PlacedWindow.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestPlacedWindow = PlacedWindow.TestCase


# --- what makes the kernel move pages ------------------------------------------------------------------------


@pytest.fixture
def sysctls(tmp_path: Path) -> Path:
    for name, value in (("vm/compact_unevictable_allowed", "1"), ("kernel/numa_balancing", "1")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(f"{value}\n")
    return tmp_path


def test_migration_is_forbidden(sysctls: Path) -> None:
    with pytest.raises(PartitionError, match="vm.compact_unevictable_allowed is '1'") as raised:
        check_migration(sysctls)
    assert raised.value.hint == "set vm.compact_unevictable_allowed=0 at boot"
    forbid_migration(sysctls)
    check_migration(sysctls)
    (sysctls / "kernel/numa_balancing").write_text("2\n")
    with pytest.raises(PartitionError, match="kernel.numa_balancing is '2'"):
        check_migration(sysctls)
    (sysctls / "kernel/numa_balancing").unlink()
    check_migration(sysctls)


def test_a_setting_that_does_not_hold(sysctls: Path) -> None:
    (sysctls / "kernel/numa_balancing").unlink()
    (sysctls / "kernel/numa_balancing").mkdir()
    with pytest.raises(PartitionError, match=r"kernel.numa_balancing cannot be (set|read)"):
        forbid_migration(sysctls)


@pytest.mark.soak
def test_soak_compaction_moves_no_frame() -> None:
    """The real thing: memory with holes in it is compacted, with the setting and without. It is the whole machine's."""
    setting, start = Path("/proc/sys/vm/compact_unevictable_allowed"), Path("/proc/sys/vm/compact_memory")
    if not (setting.exists() and start.exists()):
        pytest.skip("this kernel does not compact memory")
    before, moved = setting.read_text(), {}
    for value in ("1", "0"):
        with mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as holes:
            holes.madvise(mmap.MADV_NOHUGEPAGE)
            for offset in range(0, len(holes), PAGE_SIZE):
                holes[offset] = 1
            with placed((20000, 50), (5000, 0), allowed=(3, 4, 5)) as window:
                for offset in range(0, len(holes), 2 * PAGE_SIZE):
                    holes.madvise(mmap.MADV_DONTNEED, offset, PAGE_SIZE)
                window.load(0, bytes(window.size))
                frames = memory_of(window).frames()
                try:
                    setting.write_text(value)
                    start.write_text("1")
                finally:
                    setting.write_text(before)
                after = memory_of(window).frames()
                moved[value] = sum(was != now for was, now in zip(frames, after, strict=True))
    assert moved["0"] == 0, moved
