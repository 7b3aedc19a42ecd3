"""The virtqueue against drivers that follow the rules and drivers that do not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtio_driver import RAM, DriverQueue, guest_memory

from vambrace.virtio.memory import GuestFault
from vambrace.virtio.queue import MAX_SIZE, Queue

NEXT, WRITE, INDIRECT = 1, 2, 4


def test_gives_requests_in_order_and_takes_them_back() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    for number in range(10):  # round the ring more than twice
        head = driver.add([(b"ask %d" % number, 0), (bytes(16), WRITE)])
        chain = queue.pop()
        assert chain is not None
        assert chain.prefix(100) == b"ask %d" % number
        queue.push(chain, chain.write(b"answer"))
        assert driver.used() == [(head, 6)]
        assert driver.memory.slice(driver.buffer(head, 1), 6) == b"answer"
    assert queue.pop() is None
    assert queue.pushed == 10


def test_respects_suppressed_interrupts() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    assert queue.wants_interrupt()
    driver.suppress_interrupts()
    assert not queue.wants_interrupt()


def test_refuses_a_loop() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.descriptor(0, RAM, 1, NEXT, 1)
    driver.descriptor(1, RAM, 1, NEXT, 0)
    driver.offer(0)
    with pytest.raises(GuestFault, match="loop"):
        queue.pop()


@pytest.mark.parametrize(
    ("address", "length", "flags"),
    [
        (0, 16, 0),
        (RAM - 1, 16, 0),
        (RAM + (1 << 20) - 8, 16, 0),
        (RAM, 0xFFFF_FFFF, WRITE),
        (0xFFFF_FFFF_FFFF_FFFF, 1, 0),
        (RAM, 16, INDIRECT),
        (RAM, 16, 0x8000),
    ],
)
def test_refuses_descriptors(address: int, length: int, flags: int) -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.descriptor(0, address, length, flags, 0)
    driver.offer(0)
    with pytest.raises(GuestFault):
        queue.pop()


def test_refuses_a_head_and_a_next_outside_of_the_table() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.offer(4)
    with pytest.raises(GuestFault, match="outside"):
        queue.pop()
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.descriptor(0, RAM, 1, NEXT, 65535)
    driver.offer(0)
    with pytest.raises(GuestFault, match="outside"):
        queue.pop()


def test_refuses_readable_after_writable() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.add([(b"x", WRITE), (b"y", 0)])
    with pytest.raises(GuestFault, match="after"):
        queue.pop()


def test_refuses_an_index_that_jumps() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.set_available_index(5)
    with pytest.raises(GuestFault, match="more requests"):
        queue.pop()


def test_requests_ends_though_the_guest_adds_for_ever() -> None:
    driver = DriverQueue(guest_memory(), size=4)
    queue = driver.device_side()
    driver.add([(b"x", 0)])
    seen = 0
    for _ in queue.requests():
        seen += 1
        driver.offer(0)
    assert seen == 4


@pytest.mark.parametrize("size", [0, 3, MAX_SIZE * 2, 0xFFFF_FFFF])
def test_refuses_sizes(size: int) -> None:
    with pytest.raises(GuestFault):
        Queue(guest_memory(), size, RAM, RAM + 0x2000, RAM + 0x4000)


@pytest.mark.parametrize(
    "rings",
    [
        (RAM + 8, RAM, RAM),
        (RAM, RAM + 1, RAM),
        (RAM, RAM, RAM + 2),
        (0, RAM, RAM),
        (RAM, RAM + (1 << 20) - 4, RAM),
        (RAM, RAM, 1 << 63),
    ],
)
def test_refuses_ring_addresses(rings: tuple[int, int, int]) -> None:
    with pytest.raises(GuestFault):
        Queue(guest_memory(), 4, *rings)


@given(table=st.binary(min_size=64, max_size=64), ring=st.binary(min_size=14, max_size=14))
def test_any_ring_contents_give_bounded_chains_or_a_fault(table: bytes, ring: bytes) -> None:
    memory = guest_memory()
    driver = DriverQueue(memory, size=4)
    queue = driver.device_side()
    memory.slice(driver.descriptors, 64)[:] = table
    memory.slice(driver.available, 14)[:] = ring
    try:
        for chain in queue.requests():
            assert len(chain.readable) + len(chain.writable) <= 4
            queue.push(chain, chain.capacity)
    except GuestFault:
        return
    assert struct.unpack_from("<H", memory.slice(driver.used_ring, 4), 2)[0] <= 4


addresses = st.integers(0, 0x6_0000).map(lambda offset: RAM + offset) | st.sampled_from(
    [0, RAM - 1, RAM + (1 << 20) - 1]
)
lengths = st.integers(0, 64) | st.sampled_from([4096, 1 << 18, (1 << 20) + 1, (1 << 32) - 1])
indices = st.integers(0, 9) | st.sampled_from([255, 0xFFFF])
flags = st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, 2, 1, 0, 3, INDIRECT, 0xFFFF])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[int, int, int, int]], list[int], int]:
    """Descriptors of a whole queue, heads, and how many of these are offered."""
    size = draw(st.sampled_from([1, 2, 4, 8]))
    entries = draw(st.lists(st.tuples(addresses, lengths, flags, indices), min_size=size, max_size=size))
    return entries, draw(st.lists(indices, min_size=size, max_size=size)), draw(st.integers(0, size + 1))


@given(table=tables())
def test_what_comes_out_is_what_the_descriptors_say(
    table: tuple[list[tuple[int, int, int, int]], list[int], int],
) -> None:
    """It lies in memory, is as long as they say, and comes once."""
    entries, heads, offered = table
    memory, size = guest_memory(), len(entries)
    ring = DriverQueue(memory, size)
    for index, entry in enumerate(entries):
        ring.descriptor(index, *entry)
    for head in heads[:offered]:
        ring.offer(head)
    ring.set_available_index(offered)
    queue, taken = ring.device_side(), 0
    try:
        while (chain := queue.pop()) is not None:
            assert chain.head == heads[taken] < size
            taken += 1
            parts, index = [], chain.head
            for _ in range(size):
                address, length, flag, following = entries[index]
                assert address >= RAM and address + length <= RAM + memory.size and flag <= 3
                parts.append((length, bool(flag & WRITE)))
                if not flag & NEXT:
                    break
                index = following
            ours = [(len(part), False) for part in chain.readable]
            assert ours + [(len(part), True) for part in chain.writable] == parts
            queue.push(chain, 0)
    except GuestFault:
        pass
    assert taken <= min(offered, size)
    assert [head for head, _ in ring.used()] == heads[:taken]
