"""The IOMMU device: what a guest maps is what its devices reach, and nothing that it asks for makes it more."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtio_driver import RAM, Driver, guest_memory

from vambrace.errors import KvmError, PagerError
from vambrace.virtio import iommu
from vambrace.virtio.device import VERSION_1
from vambrace.virtio.iommu import Iommu, Reach

PAGE = 4096
MEMORY = 1 << 20
FEATURES = VERSION_1 | 1 | 2 | 4 | 16
ATTACH, DETACH, MAP, UNMAP, PROBE = 1, 2, 3, 4, 5
READ, WRITE = 1, 2
DISK, CARD, TWIN = 8, 16, 17
REACH = Reach(((0, 0x7FF_FFFF), (0x810_0000, 0xFFFF_FFFF_FFFF)), (0x808_0000, 0x809_FFFF))
NEEDS_RESET = 64


class Space:
    """What a device reaches: pages by their address, each (host address, read, write)."""

    def __init__(self) -> None:
        self.pages: dict[int, tuple[int, bool, bool]] = {}
        self.refuse = False
        self.unmapped: list[tuple[int, int]] = []

    def map(self, iova: int, address: int, size: int, *, read: bool, write: bool) -> None:
        if self.refuse:
            raise KvmError("no")
        for offset in range(0, size, PAGE):
            assert iova + offset not in self.pages
            self.pages[iova + offset] = (address + offset, read, write)

    def unmap(self, iova: int, size: int) -> None:
        self.unmapped.append((iova, size))
        for offset in range(0, size, PAGE):
            del self.pages[iova + offset]


class Pins:
    """At most ``budget`` different pages at a time."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.counts: dict[int, int] = {}

    def pin(self, offset: int, length: int) -> None:
        pages = range(offset, offset + length, PAGE)
        if len(self.counts.keys() | set(pages)) > self.budget:
            raise PagerError("too many")
        for page in pages:
            self.counts[page] = self.counts.get(page, 0) + 1

    def unpin(self, offset: int, length: int) -> None:
        for page in range(offset, offset + length, PAGE):
            self.counts[page] -= 1
            if not self.counts[page]:
                del self.counts[page]


class Guest:
    """A driver of the device: two devices by themselves, and a third that the IOMMU takes for the second."""

    def __init__(self, budget: int = 64) -> None:
        memory = guest_memory(MEMORY)
        self.disk, self.card = Space(), Space()
        self.pins = Pins(budget)
        self.device = Iommu({DISK: self.disk, CARD: self.card, TWIN: self.card}, memory, self.pins, REACH)
        self.driver = Driver(self.device, memory=memory)
        self.host = memory.host
        self.driver.start(FEATURES)

    def ask(self, request: bytes, answer: int = 4) -> int:
        """The status of a request."""
        head = self.driver.ask(0, [(request, 0), (b"\xee" * answer, 2)])
        status = self.driver.answer(0, head, 1, answer)[-4:]
        assert status[1:] == b"\0\0\0"
        return status[0]

    def attach(self, domain: int, endpoint: int, flags: int = 0) -> int:
        return self.ask(struct.pack("<B3xIII4x", ATTACH, domain, endpoint, flags))

    def detach(self, domain: int, endpoint: int) -> int:
        return self.ask(struct.pack("<B3xII8x", DETACH, domain, endpoint))

    def map(self, domain: int, first: int, size: int, physical: int, flags: int = READ | WRITE) -> int:
        request = struct.pack("<B3xIQQQI", MAP, domain, first, (first + size - 1) & ((1 << 64) - 1), physical, flags)
        return self.ask(request)

    def unmap(self, domain: int, first: int, size: int) -> int:
        return self.ask(struct.pack("<B3xIQQ4x", UNMAP, domain, first, (first + size - 1) & ((1 << 64) - 1)))


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.driver.close()


def test_what_is_mapped_is_reached_and_nothing_else(guest: Guest) -> None:
    assert guest.attach(1, DISK) == iommu.OK
    assert not guest.disk.pages, "there is no bypass"
    assert guest.map(1, 0x10_0000, 2 * PAGE, RAM + 4 * PAGE, READ) == iommu.OK
    place = guest.host + 4 * PAGE
    assert guest.disk.pages == {0x10_0000: (place, True, False), 0x10_1000: (place + PAGE, True, False)}
    assert not guest.card.pages
    assert set(guest.pins.counts) == {4 * PAGE, 5 * PAGE}
    assert guest.unmap(1, 0x10_0000, 2 * PAGE) == iommu.OK
    assert not guest.disk.pages
    assert not guest.pins.counts


def test_what_lies_side_by_side_is_unmapped_by_one_call(guest: Guest) -> None:
    """As Linux does it with a transfer: pages from anywhere are mapped one by one, and unmapped together."""
    assert guest.attach(1, DISK) == iommu.OK
    for number, page in enumerate((9, 2, 7, 30)):
        assert guest.map(1, 0x10_0000 + number * PAGE, PAGE, RAM + page * PAGE) == iommu.OK
    assert guest.map(1, 0x10_8000, PAGE, RAM + 11 * PAGE) == iommu.OK
    assert guest.map(1, 0x10_9000, PAGE, RAM + 12 * PAGE) == iommu.OK
    assert guest.unmap(1, 0x10_0000, 9 * PAGE) == iommu.OK
    assert guest.disk.unmapped == [(0x10_0000, 4 * PAGE), (0x10_8000, PAGE)]
    assert guest.disk.pages.keys() == {0x10_9000} and guest.pins.counts == {12 * PAGE: 1}


def test_beyond_the_budget_a_mapping_fails_and_the_others_stay() -> None:
    guest = Guest(budget=2)
    assert guest.attach(1, DISK) == iommu.OK
    assert guest.map(1, 0, 2 * PAGE, RAM) == iommu.OK
    before = dict(guest.disk.pages)
    assert guest.map(1, 0x10_0000, PAGE, RAM + 8 * PAGE) == iommu.NO_MEMORY
    assert guest.disk.pages == before
    assert guest.map(1, 0x10_0000, PAGE, RAM) == iommu.OK, "the same page again costs nothing"
    assert guest.unmap(1, 0, 2 * PAGE) == iommu.OK
    assert guest.map(1, 0, PAGE, RAM + 8 * PAGE) == iommu.OK


def test_a_domain_ends_with_its_last_device(guest: Guest) -> None:
    assert guest.map(1, 0, PAGE, RAM) == iommu.NO_ENTRY
    assert guest.attach(1, DISK) == guest.attach(1, CARD) == iommu.OK
    assert guest.map(1, 0, PAGE, RAM) == iommu.OK
    assert guest.disk.pages == guest.card.pages != {}
    assert guest.detach(1, DISK) == iommu.OK
    assert not guest.disk.pages
    assert guest.card.pages
    assert guest.pins.counts
    assert guest.detach(1, CARD) == iommu.OK
    assert not guest.card.pages
    assert not guest.pins.counts
    assert guest.map(1, 0, PAGE, RAM) == iommu.NO_ENTRY


def test_a_device_that_changes_its_domain_leaves_the_first(guest: Guest) -> None:
    assert guest.attach(1, CARD) == guest.attach(2, DISK) == iommu.OK
    assert guest.map(1, 0, PAGE, RAM) == guest.map(2, PAGE, PAGE, RAM + PAGE) == iommu.OK
    assert guest.attach(1, DISK) == iommu.OK
    assert set(guest.disk.pages) == {0}
    assert guest.detach(2, DISK) == iommu.NO_ENTRY
    assert set(guest.pins.counts) == {0}


def test_devices_that_cannot_be_told_apart_are_in_one_domain(guest: Guest) -> None:
    assert guest.attach(1, CARD) == iommu.OK
    assert guest.attach(2, TWIN) == iommu.UNSUPPORTED
    assert guest.map(1, 0, PAGE, RAM) == iommu.OK
    assert guest.attach(1, TWIN) == iommu.OK
    assert guest.detach(1, CARD) == iommu.OK
    assert guest.card.pages, "the other one reaches it still"
    assert guest.detach(1, TWIN) == iommu.OK
    assert not guest.card.pages


def test_requests_that_make_no_sense_change_nothing(guest: Guest) -> None:
    assert guest.attach(1, DISK) == iommu.OK
    assert guest.map(1, 0x10_0000, 2 * PAGE, RAM) == iommu.OK
    before = dict(guest.disk.pages), dict(guest.pins.counts)
    for status, found in (
        (iommu.NO_ENTRY, guest.attach(1, 99)),
        (iommu.INVALID, guest.attach(1, CARD, flags=1)),  # bypass
        (iommu.NO_ENTRY, guest.detach(7, DISK)),
        (iommu.INVALID, guest.detach(1, CARD)),
        (iommu.NO_ENTRY, guest.map(7, 0, PAGE, RAM)),
        (iommu.INVALID, guest.map(1, 0x10_1000, PAGE, RAM)),  # overlaps
        (iommu.INVALID, guest.map(1, 0, PAGE, RAM, 0)),
        (iommu.INVALID, guest.map(1, 0, PAGE, RAM, 4)),  # device memory
        (iommu.RANGE, guest.map(1, 1, PAGE, RAM)),
        (iommu.RANGE, guest.map(1, 0, PAGE, RAM + 1)),
        (iommu.RANGE, guest.map(1, 0, 100, RAM)),
        (iommu.RANGE, guest.map(1, PAGE, 0, RAM)),
        (iommu.RANGE, guest.map(1, 0x800_0000, PAGE, RAM)),  # the host's interrupts
        (iommu.RANGE, guest.map(1, 0x7FF_F000, 2 * PAGE, RAM)),
        (iommu.RANGE, guest.map(1, 1 << 48, PAGE, RAM)),
        (iommu.FAULT, guest.map(1, 0, PAGE, RAM - PAGE)),
        (iommu.FAULT, guest.map(1, 0, 2 * PAGE, RAM + MEMORY - PAGE)),
        (iommu.FAULT, guest.map(1, 0, PAGE, 0)),
        (iommu.RANGE, guest.unmap(1, 0x10_1000, PAGE)),  # would cut in two
        (iommu.RANGE, guest.unmap(1, 0x10_0000, PAGE)),
        (iommu.RANGE, guest.unmap(1, PAGE, 0)),
        (iommu.NO_ENTRY, guest.unmap(7, 0, PAGE)),
        (iommu.UNSUPPORTED, guest.ask(struct.pack("<B3x16x", 77))),
        (iommu.INVALID, guest.ask(struct.pack("<BBxxII8x", DETACH, 1, 1, DISK))),
        (iommu.INVALID, guest.ask(struct.pack("<B3xII4xI", DETACH, 1, DISK, 1))),
        (iommu.INVALID, guest.ask(struct.pack("<B3xI", MAP, 1))),
    ):
        assert found == status
    assert (guest.disk.pages, guest.pins.counts) == before
    assert guest.unmap(1, 0, 1 << 30) == iommu.OK


@pytest.mark.parametrize("parts", [[(b"\1", 0), (bytes(4), 2)], [(bytes(20), 0)], [(bytes(20), 0), (bytes(3), 2)]])
def test_a_request_that_cannot_be_answered_stops_the_device(guest: Guest, parts: list[tuple[bytes, int]]) -> None:
    assert guest.attach(1, DISK) == guest.map(1, 0, PAGE, RAM) == iommu.OK
    guest.driver.ask(0, parts)
    assert guest.driver.get(0x70) & NEEDS_RESET
    assert not guest.disk.pages
    assert not guest.pins.counts


def test_what_the_machine_refuses_is_undone(guest: Guest) -> None:
    assert guest.attach(1, DISK) == guest.attach(1, CARD) == iommu.OK
    guest.card.refuse = True
    assert guest.map(1, 0, PAGE, RAM) == iommu.DEVICE_ERROR
    assert not guest.disk.pages
    assert not guest.pins.counts
    assert guest.detach(1, CARD) == iommu.OK
    assert guest.map(1, 0, PAGE, RAM) == iommu.OK
    assert guest.attach(1, CARD) == iommu.DEVICE_ERROR
    assert guest.detach(1, CARD) == iommu.INVALID


def test_a_reset_takes_everything_back(guest: Guest) -> None:
    assert guest.attach(1, DISK) == guest.map(1, 0, PAGE, RAM) == iommu.OK
    guest.driver.set(0x70, 0)
    assert not guest.disk.pages
    assert not guest.pins.counts


def test_a_probe_tells_where_interrupts_are_written_to(guest: Guest) -> None:
    size = iommu.PROBE_SIZE + 4
    head = guest.driver.ask(0, [(struct.pack("<B3xI64x", PROBE, DISK), 0), (b"\xee" * size, 2)])
    answer = guest.driver.answer(0, head, 1, size)
    assert struct.unpack_from("<HHB3xQQ", answer) == (1, 20, 1, 0x800_0000, 0x80F_FFFF)
    assert not any(answer[24:])
    assert guest.ask(struct.pack("<B3xI64x", PROBE, 99), size) == iommu.NO_ENTRY


def test_a_notification_is_answered_at_once(guest: Guest) -> None:
    head = guest.driver.queues[0].add([(struct.pack("<B3xIII4x", ATTACH, 1, DISK, 0), 0), (b"\xee" * 4, 2)])
    guest.driver.set(0x50, 0)
    assert guest.driver.answer(0, head, 1, 4) == bytes(4)


NUMBERS = st.sampled_from([0, 1, PAGE - 1, PAGE, 3 * PAGE, 0x7FF_F000, 0x810_0000, 1 << 47, (1 << 64) - PAGE])
REQUESTS = st.one_of(
    st.tuples(st.just("attach"), st.integers(0, 2), st.sampled_from([DISK, CARD, TWIN, 3])),
    st.tuples(st.just("detach"), st.integers(0, 2), st.sampled_from([DISK, CARD, TWIN, 3])),
    st.tuples(
        st.just("map"),
        st.integers(0, 2),
        st.integers(0, 12).map(lambda page: page * PAGE) | NUMBERS,
        st.integers(1, 4).map(lambda page: page * PAGE) | NUMBERS,
        st.integers(0, 12).map(lambda page: RAM + page * PAGE) | NUMBERS,
        st.integers(0, 7),
    ),
    st.tuples(
        st.just("unmap"),
        st.integers(0, 2),
        st.integers(0, 12).map(lambda page: page * PAGE) | NUMBERS,
        st.integers(1, 4).map(lambda page: page * PAGE) | NUMBERS,
    ),
)


@given(st.lists(REQUESTS, max_size=40), st.integers(0, 8))
def test_whatever_is_asked_pins_and_reach_agree(requests: list[tuple], budget: int) -> None:  # type: ignore[type-arg]
    """All that a device reaches is guest memory, is pinned, and within the budget; at the end nothing is left."""
    guest = Guest(budget)
    for name, *arguments in requests:
        getattr(guest, name)(*arguments)
        reached = set()
        for space in (guest.disk, guest.card):
            reached |= {place - guest.host for place, _, _ in space.pages.values()}
        assert reached == set(guest.pins.counts)
        assert len(reached) <= budget
        assert all(0 <= offset < MEMORY for offset in reached)
    guest.driver.set(0x70, 0)
    assert not guest.disk.pages
    assert not guest.card.pages
    assert not guest.pins.counts
    guest.driver.close()


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_bytes_of_any_kind_reach_no_memory_that_is_not_the_guest_s(requests: list[bytes]) -> None:
    guest = Guest()
    guest.attach(1, DISK)
    for request in requests:
        guest.driver.ask(0, [(request, 0), (bytes(iommu.PROBE_SIZE + 4), 2)])
    for place, _, _ in (*guest.disk.pages.values(), *guest.card.pages.values()):
        assert 0 <= place - guest.host < MEMORY
    guest.driver.close()
