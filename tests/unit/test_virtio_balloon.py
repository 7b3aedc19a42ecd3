"""The balloon: what a guest reports as free becomes zero, and nothing else does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import RAM, Driver, DriverQueue, guest_memory

from vambrace.errors import PagerError
from vambrace.pager import Window
from vambrace.virtio import balloon
from vambrace.virtio.balloon import LIMIT, MOST_RANGES, PAGE, REPORTING_QUEUES, Balloon
from vambrace.virtio.device import VERSION_1
from vambrace.virtio.memory import GuestMemory

REPORTING = 1 << 5
NEXT, WRITE, NEEDS_RESET = 1, 2, 64
INFLATE, DEFLATE, LINUX, SPECIFIED = 0, 1, *REPORTING_QUEUES
FREE = 0x8_0000  # offset in memory above all rings
PAGES = 128  # from there on


class Guest:
    """A driver with a balloon; ``given`` is what came back, as (page from FREE on, pages)."""

    def __init__(self, size: int = 64) -> None:
        self.given: list[tuple[int, int]] = []
        memory = guest_memory(FREE + PAGES * PAGE)
        self.driver = Driver(Balloon(self._discard), size, memory)
        memory.slice(RAM + FREE, PAGES * PAGE)[:] = b"\xff" * (PAGES * PAGE)

    def _discard(self, offset: int, length: int) -> None:
        assert offset % PAGE == length % PAGE == 0
        self.driver.memory.slice(RAM + offset, length)[:] = bytes(length)
        self.given.append(((offset - FREE) // PAGE, length // PAGE))

    def report(self, index: int, *ranges: tuple[int, int], flags: int = WRITE) -> list[tuple[int, int]]:
        """Reports ranges by guest-physical address and length in one request; what came back of the queue."""
        chain(self.driver.queues[index], *ranges, flags=flags)
        self.driver.transport.process(index)
        return self.driver.queues[index].used()

    def zero_pages(self) -> set[int]:
        memory = self.driver.memory.slice(RAM + FREE, PAGES * PAGE)
        return {page for page in range(PAGES) if not any(memory[page * PAGE : (page + 1) * PAGE])}


def chain(queue: DriverQueue, *ranges: tuple[int, int], flags: int = WRITE) -> None:
    for index, (address, length) in enumerate(ranges):
        more = NEXT if index + 1 < len(ranges) else 0
        queue.descriptor(index, address, length, flags | more, index + 1)
    queue.offer(0)


def page(number: int) -> int:
    return RAM + FREE + number * PAGE


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    guest.driver.start(VERSION_1 | REPORTING)
    yield guest
    guest.driver.close()


def test_identifies_itself_and_wants_no_memory(guest: Guest) -> None:
    assert guest.driver.get(8) == 5
    guest.driver.set(0x14, 0)
    assert guest.driver.get(0x10) == REPORTING
    guest.driver.set(0x14, 1)
    assert guest.driver.get(0x10) == 1  # VERSION_1
    guest.driver.set(0x104, 77)  # "actual", as a driver may write
    assert guest.driver.transport.read(0x100, 8) == bytes(8)
    for index in range(5):
        guest.driver.set(0x30, index)
        assert guest.driver.get(0x34) >= 32, "Linux gives up on a reporting queue of less"
        assert guest.driver.get(0x44) == 1


@pytest.mark.parametrize("index", REPORTING_QUEUES)
def test_reported_pages_become_zero(guest: Guest, index: int) -> None:
    """Whichever number the driver has for the queue; nothing is said to be written."""
    assert guest.report(index, (page(1), PAGE), (page(4), 16 * PAGE)) == [(0, 0)]
    assert guest.given == [(1, 1), (4, 16)]
    assert guest.zero_pages() == {1, *range(4, 20)}


def test_a_driver_with_only_the_queues_that_linux_makes() -> None:
    guest = Guest()
    guest.driver.features(VERSION_1 | REPORTING)
    for index in (INFLATE, DEFLATE, LINUX):
        guest.driver.set_queue(index, guest.driver.queues[index])
    guest.driver.set(0x70, 15)
    assert guest.report(LINUX, (page(0), PAGE)) == [(0, 0)]
    assert guest.zero_pages() == {0}
    guest.driver.transport.process(SPECIFIED)
    assert guest.driver.get(0x70) == 15
    guest.driver.close()


@pytest.mark.parametrize("index", [INFLATE, DEFLATE, 3])
def test_the_other_queues_do_nothing(guest: Guest, index: int) -> None:
    """Page numbers, or ranges as if they were reports: given back as they are."""
    assert guest.report(index, (page(0), 8 * PAGE)) == [(0, 0)]
    assert guest.report(index, (page(0), 8), flags=0) == [(0, 0)]
    assert guest.given == [] and guest.zero_pages() == set()
    assert guest.driver.get(0x70) == 15


def test_nothing_without_the_feature(guest: Guest) -> None:
    guest.driver.set(0x70, 0)
    guest.driver.queues = [DriverQueue(guest.driver.memory, 64, slot) for slot in range(5)]
    guest.driver.memory.slice(RAM, FREE)[:] = bytes(FREE)
    guest.driver.start(VERSION_1)
    for index in REPORTING_QUEUES:
        assert guest.report(index, (page(0), PAGE)) == [(0, 0)]
    assert guest.given == []


def test_what_is_not_whole_pages_stays(guest: Guest) -> None:
    guest.report(LINUX, (page(1) + 1, 2 * PAGE), (page(5) - 1, PAGE + 2), (page(8), PAGE - 1), (page(9) + 8, 8))
    assert guest.given == [(2, 1), (5, 1)]
    memory = guest.driver.memory
    assert memory.slice(page(1), PAGE) == memory.slice(page(3), PAGE) == memory.slice(page(4), PAGE) == b"\xff" * PAGE
    assert guest.zero_pages() == {2, 5}


def test_what_the_device_may_only_read_stays(guest: Guest) -> None:
    assert guest.report(LINUX, (page(1), PAGE), flags=0) == [(0, 0)]
    assert guest.report(LINUX, (page(1), 0)) == [(0, 0)]
    assert guest.given == []


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0, PAGE),
        (RAM - PAGE, 2 * PAGE),
        (page(PAGES), PAGE),
        (page(PAGES - 1), 2 * PAGE),
        (page(0), 0xFFFF_F000),
        ((1 << 64) - PAGE, PAGE),
        (1 << 63, PAGE),
    ],
)
def test_a_range_outside_of_memory_stops_the_device(guest: Guest, address: int, length: int) -> None:
    """Of a request with such a range nothing is given back, and the device works again after a reset."""
    assert guest.report(LINUX, (page(0), PAGE), (address, length)) == []
    assert guest.driver.get(0x70) & NEEDS_RESET and guest.given == []
    guest.driver.set(0x70, 0)
    guest.driver.queues = [DriverQueue(guest.driver.memory, 64, slot) for slot in range(5)]
    guest.driver.memory.slice(RAM, FREE)[:] = bytes(FREE)
    guest.driver.start(VERSION_1 | REPORTING)
    assert guest.report(LINUX, (page(0), PAGE)) == [(0, 0)]
    assert guest.given == [(0, 1)]


def test_a_turn_has_an_end(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that reports its memory over and over gets its turn, no more; all of it comes back."""
    queue = guest.driver.queues[LINUX]
    monkeypatch.setattr(balloon, "LIMIT", 3 * PAGES * PAGE)
    for _ in range(8):
        chain(queue, (page(0), PAGES * PAGE), (page(0), PAGES // 2 * PAGE))
    guest.driver.transport.process(LINUX)
    assert len(queue.used()) == 8
    assert guest.given == [(0, PAGES), (0, PAGES // 2)] * 2
    guest.given.clear()
    for _ in range(8):
        chain(queue, *[(page(0), PAGE)] * 63)
    guest.driver.transport.process(LINUX)
    assert len(queue.used()) == 8
    assert len(guest.given) == MOST_RANGES
    assert guest.report(LINUX, (page(3), PAGE)) == [(0, 0)]
    assert guest.given[-1] == (3, 1)


def test_a_turn_is_enough_for_all_that_linux_reports_at_a_time() -> None:
    assert MOST_RANGES >= 32 and LIMIT >= 32 << 22


def test_a_guest_may_report_its_rings(guest: Guest) -> None:
    """It loses them, and the device stops or waits."""
    queue = guest.driver.queues[LINUX]
    guest.report(LINUX, (queue.descriptors, 0x6000))
    guest.driver.transport.process(LINUX)
    assert guest.zero_pages() == set()
    guest.driver.set(0x70, 0)
    assert guest.driver.get(0x70) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    ranges=st.lists(
        st.tuples(st.integers(0, PAGES * PAGE), st.one_of(st.integers(0, PAGES * PAGE), st.integers(0, 3 * PAGE))),
        min_size=1,
        max_size=20,
    )
)
def test_exactly_the_whole_pages_inside(ranges: list[tuple[int, int]]) -> None:
    inside = [(start, min(length, PAGES * PAGE - start)) for start, length in ranges]
    guest = Guest()
    guest.driver.start(VERSION_1 | REPORTING)
    assert guest.report(LINUX, *((page(0) + start, length) for start, length in inside)) == [(0, 0)]
    wanted = {
        number
        for number in range(PAGES)
        for start, length in inside
        if start <= number * PAGE and (number + 1) * PAGE <= start + length
    }
    assert guest.zero_pages() == wanted
    guest.driver.close()


# --- with a real window ------------------------------------------------------------------------------------


@pytest.fixture
def window() -> Iterator[Window]:
    options: dict[str, Any] = {"key": os.urandom(32), "instance": os.urandom(16)}
    try:
        window = Window([(256, 10), (512, 80)], **options)
    except PagerError as error:
        pytest.skip(f"{error}; {error.hint}")
    with window:
        yield window


def test_the_window_forgets_what_is_reported(window: Window) -> None:
    """Pages of both zones, encrypted and plaintext ones, read as zeros afterwards and cost no encryption."""
    contents = os.urandom(window.size)
    memory = GuestMemory(window.memory(), RAM, window.address)
    window.load(0, contents)
    driver = Driver(Balloon(window.discard), 64, memory)
    for queue in driver.queues:  # where the rings will be
        memory.slice(queue.descriptors, 0x6000)[:] = bytes(0x6000)
    driver.start(VERSION_1 | REPORTING)
    before = [window.stats(zone) for zone in (0, 1)]
    assert before[1].plaintext > 0
    first, count = 200, 400  # over the border at 256
    queue = driver.queues[LINUX]
    chain(queue, (RAM + first * PAGE, count * PAGE - 1))
    driver.transport.process(LINUX)
    assert queue.used() == [(0, 0)]
    after = [window.stats(zone) for zone in (0, 1)]
    assert after[0].discarded - before[0].discarded == 256 - first
    assert after[1].discarded - before[1].discarded == first + count - 1 - 256
    assert after[1].bytes_encrypted - before[1].bytes_encrypted <= PAGE * 64
    end = (first + count - 1) * PAGE
    assert window.read(first * PAGE, end - first * PAGE) == bytes(end - first * PAGE)
    assert window.read(end, window.size - end) == contents[end:]
    assert window.read(0x6_0000, first * PAGE - 0x6_0000) == contents[0x6_0000 : first * PAGE]
    driver.close()
    del memory, driver, queue


def test_a_pinned_page_stays(window: Window) -> None:
    with Window([(512, 50, 32)], os.urandom(32), os.urandom(16)) as pinning:
        memory = GuestMemory(pinning.memory(), RAM, pinning.address)
        place = 400 * PAGE
        pinning.load(place, b"\xff" * (3 * PAGE))
        pinning.pin(place + PAGE, PAGE)
        driver = Driver(Balloon(pinning.discard), 64, memory)
        driver.start(VERSION_1 | REPORTING)
        chain(driver.queues[LINUX], (RAM + place, 3 * PAGE))
        driver.transport.process(LINUX)
        assert pinning.read(place, 3 * PAGE) == bytes(PAGE) + b"\xff" * PAGE + bytes(PAGE)
        driver.close()
        del memory, driver
