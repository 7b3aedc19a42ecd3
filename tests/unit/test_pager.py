"""The window from Python, on this process's own memory."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vambrace.errors import PagerError
from vambrace.pager import MINIMUM_WINDOW, PIN_HEADROOM, Window, window_pages

PAGE = 4096


pytestmark = pytest.mark.usefixtures("kernel")


def create(*zones: tuple[int, int], **options: Any) -> Window:
    return Window(zones, os.urandom(32), os.urandom(16), **options)


@pytest.fixture
def window() -> Iterator[Window]:
    with create((512, 80), (300, 50)) as window:
        yield window


def present(address: int, pages: int) -> int:
    """Pages that the kernel says are there, and hence plaintext: ciphertext lies elsewhere."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE * 8)
        entries = struct.unpack(f"={pages}Q", pagemap.read(8 * pages))
    return sum(entry >> 63 for entry in entries)


def test_load_and_read(window: Window) -> None:
    data = os.urandom(window.size)
    window.load(0, data)
    assert window.size == 812 * PAGE
    assert window.read(0, window.size) == data
    assert window.memory()[5000:9000] == data[5000:9000]
    window.load(4090, bytearray(b"across two pages"))
    assert window.read(4090, 16) == b"across two pages"
    assert window.read(window.size, 0) == b""


def test_digests_are_those_of_the_pages(window: Window) -> None:
    data = bytes(range(256)) * (2 * PAGE // 256) + b"a part"
    window.load(PAGE, data)
    padded = data.ljust(3 * PAGE, b"\0")
    pages = [hashlib.sha256(padded[start : start + PAGE]).digest() for start in range(0, 3 * PAGE, PAGE)]
    assert window.digests(PAGE, len(data), "sha256") == b"".join(pages)
    assert window.digests(0, 0, "sha256") == b""
    wrong = [(1, 1, "sha256"), (0, window.size + 1, "sha256"), (-1, 1, "sha256"), (0, 1, "md5")]
    for offset, length, algorithm in wrong:
        with pytest.raises(PagerError):
            window.digests(offset, length, algorithm)


def test_memory_is_shared_with_load(window: Window) -> None:
    memory = window.memory()
    assert memory is window.memory()
    memory[10 * PAGE : 10 * PAGE + 3] = b"abc"
    assert window.read(10 * PAGE, 3) == b"abc"
    assert not memory.readonly and memory.nbytes == window.size


def test_statistics(window: Window) -> None:
    assert window.memory()[0] == 0
    stats = window.stats(0)
    assert (stats.pages, stats.percent, stats.window) == (512, 80, 102)
    assert stats.faults == stats.zero_faults == 1
    window.load(0, bytes(512 * PAGE))
    stats = window.stats(0)
    assert stats.plaintext <= stats.plaintext_max <= stats.window
    assert stats.evictions * PAGE == stats.bytes_encrypted > 0
    assert window.stats(1).plaintext == 0


@given(st.integers(1, 10**6), st.integers(0, 100))
def test_window_pages(pages: int, percent: int) -> None:
    expected = max((100 - percent) * pages // 100, MINIMUM_WINDOW)
    assert window_pages(pages, percent) == min(expected, pages)


def test_core_agrees_about_the_window() -> None:
    with create((1001, 0)) as window:
        for percent in range(101):
            window.set_percent(0, percent)
            assert window.stats(0).window == window_pages(1001, percent)


@pytest.mark.parametrize(
    "arguments",
    [
        ([], bytes(32), bytes(16)),
        ([(0, 0)], bytes(32), bytes(16)),
        ([(1, 101)], bytes(32), bytes(16)),
        ([(1, -1)], bytes(32), bytes(16)),
        ([(-1, 0)], bytes(32), bytes(16)),
        ([(2**40, 0)], bytes(32), bytes(16)),
        ([(2**64, 0)], bytes(32), bytes(16)),
        ([(1, 0)] * 17, bytes(32), bytes(16)),
        ([[1, 0]], bytes(32), bytes(16)),
        ([(1, 0)], bytes(31), bytes(16)),
        ([(1, 0)], bytes(32), bytes(17)),
        ([(1, 0)], "key", bytes(16)),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PagerError):
        Window(*arguments)


def test_unknown_cipher_and_cpu() -> None:
    with pytest.raises(PagerError) as raised:
        create((1, 0), cipher="aes-128-ecb")
    assert raised.value.hint is not None and "aes-256-gcm" in raised.value.hint
    with pytest.raises(PagerError):
        create((1, 0), handler_cpus=[4000])
    with create((1, 0), handler_cpus=sorted(os.sched_getaffinity(0))) as window:
        assert window.memory()[0] == 0


def test_wrong_calls(window: Window) -> None:
    for offset, length in [(-1, 1), (0, -1), (window.size, 1), (0, window.size + 1), (2**62, 2**62)]:
        with pytest.raises(PagerError):
            window.read(offset, length)
    with pytest.raises(PagerError):
        window.load(window.size - 1, b"ab")
    with pytest.raises(PagerError):
        window.load(0, window.memory()[PAGE : 2 * PAGE])
    for number in (2**70, -(2**70)):
        for call in (lambda: window.read(number, 1), lambda: window.load(number, b"x"), lambda: window.stats(number)):  # noqa: B023
            with pytest.raises(PagerError):
                call()
    for zone, percent in [(2, 0), (-1, 0), (0, 101), (0, -1), (2**70, 0), (0, 2**70)]:
        with pytest.raises(PagerError):
            window.set_percent(zone, percent)
    with pytest.raises(PagerError):
        window.stats(2)


def test_close() -> None:
    window = create((128, 50))
    memory, descriptor = window.memory(), window.failure_fd
    piece = memory[:10]
    window.load(0, b"secret")
    window.close()
    window.close()
    assert window.failure() is None
    for call in (lambda: window.read(0, 1), lambda: window.stats(0), lambda: window.set_percent(0, 0)):
        with pytest.raises(PagerError):
            call()
    # A slice was kept: the addresses stay reserved, so that it can never show another's memory.
    assert maps_of(window.address) == "---p"
    piece.release()
    memory.release()
    assert maps_of(window.address) != "---p"
    with pytest.raises(OSError):
        os.fstat(descriptor)


def maps_of(address: int) -> str:
    """The permissions of the mapping at this address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        limits, permissions, *_ = line.split()
        start, end = (int(limit, 16) for limit in limits.split("-"))
        if start <= address < end:
            return permissions
    return ""


def test_threads(window: Window) -> None:
    """Reads and writes through the window while the percentage changes."""
    wrong: list[int] = []

    def work(index: int) -> None:
        for turn in range(200):
            offset = (turn * 131 % 812) * PAGE + index * 8
            window.load(offset, struct.pack("=Q", turn))
            if window.read(offset, 8) != struct.pack("=Q", turn):
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for percent in [95, 10, 100, 0, 50] * 10:
        window.set_percent(percent % 2, percent)
        stats = window.stats(percent % 2)
        assert stats.plaintext <= stats.window == window_pages(stats.pages, percent)
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_unclosed_window_ends_with_the_process() -> None:
    code = (
        "import os; from vambrace.pager import Window, lock_process; lock_process();"
        "w = Window([(256, 90)], os.urandom(32), os.urandom(16)); w.load(0, bytes(range(256)) * 4096);"
        "assert bytes(w.memory()) == bytes(range(256)) * 4096"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("limit", "hint"), [(0, "run as root"), (65536, "RLIMIT_MEMLOCK")])
def test_a_process_that_may_not_be_locked_is_told_what_helps(limit: int, hint: str) -> None:
    code = (
        "import os, resource; from vambrace.errors import PagerError; from vambrace.pager import lock_process\n"
        f"resource.setrlimit(resource.RLIMIT_MEMLOCK, ({limit}, {limit}))\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root's capability knows no limit
        "try: lock_process()\n"
        "except PagerError as error: print(error, error.hint)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "out of swap" in result.stdout and hint in result.stdout


ZONES = (90, 200, 400)
BUDGETS = (20, 50, 60)
PAGES = sum(ZONES)
STARTS = (0, 90, 290)
HANDLERS = sorted(os.sched_getaffinity(0))[:2]


class WindowMachine(RuleBasedStateMachine):
    """Any order of calls: contents are right and the kernel's count of plaintext is within the window."""

    def __init__(self) -> None:
        super().__init__()
        self.percents = [50, 80, 100]
        zones = tuple(zip(ZONES, self.percents, BUDGETS, strict=True))
        self.window = Window(zones, os.urandom(32), os.urandom(16), handler_cpus=HANDLERS)
        self.model = bytearray(PAGES * PAGE)
        self.pins = [0] * PAGES
        self.visitors = [threading.Thread(target=self.visit, args=(cpu,), daemon=True) for cpu in HANDLERS]
        self.visiting = True
        for visitor in self.visitors:
            visitor.start()

    def visit(self, cpu: int) -> None:
        """Touches pages all the while, without changing any."""
        os.sched_setaffinity(0, {cpu})
        memory, page = self.window.memory(), cpu
        while self.visiting:
            for _ in range(20):
                page = (page * 5 + 1) % PAGES
                _ = memory[page * PAGE]
            time.sleep(0.002)  # the other threads want the GIL, too

    def teardown(self) -> None:
        self.visiting = False
        for visitor in self.visitors:
            visitor.join()
        assert self.window.failure() is None
        assert self.window.memory() == self.model
        self.window.close()

    @rule(
        offset=st.integers(0, PAGES * PAGE - 1), length=st.integers(0, 40 * PAGE), seed=st.binary(min_size=1)
    )
    def load(self, offset: int, length: int, seed: bytes) -> None:
        data = (seed * (length // len(seed) + 1))[: min(length, len(self.model) - offset)]
        self.window.load(offset, data)
        self.model[offset : offset + len(data)] = data

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, 60), value=st.integers(0, 255))
    def store(self, page: int, count: int, value: int) -> None:
        memory = self.window.memory()
        for at in range(page * PAGE + value, min(page + count, PAGES) * PAGE, PAGE):
            memory[at] = self.model[at] = value

    @rule(offset=st.integers(0, PAGES * PAGE - 1), length=st.integers(0, 100 * PAGE))
    def read(self, offset: int, length: int) -> None:
        length = min(length, len(self.model) - offset)
        assert self.window.read(offset, length) == self.model[offset : offset + length]

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, 200), step=st.integers(1, 7))
    def touch(self, page: int, count: int, step: int) -> None:
        memory = self.window.memory()
        for index in range(page, min(page + count * step, PAGES), step):
            assert memory[index * PAGE] == self.model[index * PAGE]

    @rule(zone=st.integers(0, len(ZONES) - 1), percent=st.integers(0, 100))
    def set_percent(self, zone: int, percent: int) -> None:
        pinned = self.pinned(zone)
        if percent and pinned and pinned + PIN_HEADROOM > window_pages(ZONES[zone], percent):
            with pytest.raises(PagerError) as raised:
                self.window.set_percent(zone, percent)
            assert str(pinned) in str(raised.value)
            return
        self.window.set_percent(zone, percent)
        self.percents[zone] = percent

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, 150))
    def discard(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        if not all(self.percents[self.zone_of(index)] for index in (page, page + count - 1)):
            return  # perhaps it is open, where they stay
        count = min(count, STARTS[self.zone_of(page)] + ZONES[self.zone_of(page)] - page)
        self.window.discard(page * PAGE, count * PAGE)
        for index in range(page, page + count):
            if not self.pins[index]:
                self.model[index * PAGE : (index + 1) * PAGE] = bytes(PAGE)

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, 30))
    def pin(self, page: int, count: int) -> None:
        pages = range(page, min(page + count, PAGES))
        new = [0] * len(ZONES)
        for index in pages:
            new[self.zone_of(index)] += not self.pins[index]
        allowed = all(
            self.pinned(zone) + more <= BUDGETS[zone]
            and (not self.percents[zone] or self.pinned(zone) + more + PIN_HEADROOM <= self.limit(zone))
            for zone, more in enumerate(new)
            if more
        )
        try:
            self.window.pin(page * PAGE, len(pages) * PAGE)
        except PagerError:
            assert not allowed
            return
        assert allowed
        for index in pages:
            self.pins[index] += 1

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pinned = [index for index, count in enumerate(self.pins) if count]
        if not pinned:
            return
        page = data.draw(st.sampled_from(pinned))
        self.window.unpin(page * PAGE, PAGE)
        self.pins[page] -= 1

    def zone_of(self, page: int) -> int:
        return sum(page >= start for start in STARTS) - 1

    def limit(self, zone: int) -> int:
        return window_pages(ZONES[zone], self.percents[zone])

    def pinned(self, zone: int) -> int:
        return sum(map(bool, self.pins[STARTS[zone] : STARTS[zone] + ZONES[zone]]))

    @invariant()
    def plaintext_is_within_the_window(self) -> None:
        for zone, pages in enumerate(ZONES):
            counted = present(self.window.address + STARTS[zone] * PAGE, pages)
            stats = self.window.stats(zone)
            for _ in range(20):
                # A page that leaves while the map is read, and one that comes for it farther on, are both counted.
                # The C tests count under the lock of the zone.
                if counted <= stats.window:
                    break
                counted = present(self.window.address + STARTS[zone] * PAGE, pages)
            assert stats.percent == self.percents[zone] and stats.window == self.limit(zone)
            assert stats.pinned == self.pinned(zone)
            assert counted <= stats.window and stats.plaintext <= stats.plaintext_max <= stats.window


WindowMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestWindowMachine = WindowMachine.TestCase
