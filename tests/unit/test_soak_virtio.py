"""Drivers that do anything: random registers, rings and descriptors. The device stops or serves, and after a reset it
is as new; nothing but ``GuestFault``, which the transport keeps, comes out of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fuzzing import until_budget
from hypothesis import strategies as st
from virtio_driver import RAM, Driver, DriverQueue, guest_memory

from vambrace.virtio.balloon import LIMIT, MOST_RANGES, PAGE, REPORTING_QUEUES, Balloon
from vambrace.virtio.block import Block
from vambrace.virtio.console import (
    AGENT_PORT,
    CHUNK,
    PENDING_LIMIT,
    RX_AGENT,
    RX_CONTROL,
    TX_AGENT,
    TX_CONTROL,
    Console,
)
from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.entropy import Entropy
from vambrace.virtio.memory import GuestFault, GuestMemory
from vambrace.virtio.queue import MAX_SIZE, Queue

pytestmark = pytest.mark.soak

SIZE = 1 << 20
WRITE, NEEDS_RESET = 2, 64
REGISTERS = [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, *range(0x80, 0xA8, 4), 0x34, 0xB0, 0xFC, 0x100]

numbers = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 15, 16, 255, 256, 257, 4096, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF])
addresses = (
    st.integers(0, 0x6_0000).map(lambda offset: RAM + offset)
    | st.sampled_from([0, RAM - 1, RAM, RAM + SIZE - 16, RAM + SIZE - 1, RAM + SIZE, (1 << 64) - 1, 1 << 63])
    | st.integers(0, (1 << 64) - 1)
)
lengths = st.integers(0, 64) | st.sampled_from([511, 512, 513, 4096, 4097, CHUNK, 1 << 18, SIZE, (1 << 32) - 1])
indices = st.integers(0, 9) | st.sampled_from([255, 256, 0xFFFF])
flags = st.sampled_from([0, 1, 2, 3, 2, 1, 0, 3, 4, 8, 0xFFFF])
descriptors = st.tuples(st.just("descriptor"), st.integers(0, 5), st.integers(0, 7), addresses, lengths, flags, indices)
actions = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(REGISTERS), numbers | st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("write"), st.integers(0, 0x1000), st.binary(max_size=9)),
    st.tuples(st.just("read"), st.integers(0, 0x1000), st.integers(1, 8)),
    descriptors,
    descriptors,
    st.tuples(st.just("chain"), st.integers(0, 5), st.lists(st.tuples(st.binary(max_size=40), flags), max_size=7)),
    st.tuples(st.just("offer"), st.integers(0, 5), indices),
    st.tuples(st.just("offer"), st.integers(0, 5), st.integers(0, 7)),
    st.tuples(st.just("available"), st.integers(0, 5), st.integers(0, 0xFFFF)),
    st.tuples(st.just("scribble"), st.integers(0, 0x6_0000), st.binary(max_size=40)),
    st.tuples(st.just("process"), st.integers(0, 5)),
    st.tuples(st.just("process"), st.integers(0, 5)),
    st.tuples(st.just("send"), st.binary(max_size=50) | st.just(bytes(CHUNK + 1))),
    st.tuples(st.just("start")),
    st.tuples(st.just("reset")),
)


def act(driver: Driver, device: Device, action: tuple[Any, ...]) -> None:
    name, *words = action
    queue = driver.queues[words[0] % len(driver.queues)] if words and isinstance(words[0], int) else driver.queues[0]
    number = driver.queues.index(queue)
    match name:
        case "set":
            driver.set(*words)
        case "write":
            driver.transport.write(*words)
        case "read":
            assert len(driver.transport.read(*words)) == words[1]
        case "descriptor":
            queue.descriptor(*words[1:])
        case "chain":
            queue.add(words[1])
        case "offer":
            queue.offer(words[1])
        case "available":
            queue.set_available_index(words[1])
        case "scribble":
            driver.memory.slice(RAM + words[0], len(words[1]))[:] = words[1]
        case "process":
            driver.transport.process(number)
        case "send" if isinstance(device, Console):
            device.send(words[0])
        case "start":
            driver.start(device.features)
        case "reset":
            driver.set(0x70, 0)


def fuzz(make: Callable[[GuestMemory], Device], works: Callable[[Driver, Device], None]) -> None:
    @until_budget(st.lists(actions, min_size=1, max_size=60))
    def check(script: list[tuple[Any, ...]]) -> None:
        memory = guest_memory(SIZE)
        device = make(memory)
        driver = Driver(device, memory=memory)
        try:
            driver.start(device.features)
            for action in script:
                act(driver, device, action)
                failed = driver.transport.failure is not None
                assert failed == bool(driver.get(0x70) & NEEDS_RESET)
            driver.set(0x70, 0)
            assert driver.get(0x70) == 0 and driver.transport.failure is None
            # As new, in the same machine with other rings, which nothing has scribbled over.
            driver.memory.slice(RAM, SIZE)[:] = bytes(SIZE)
            driver.queues = [DriverQueue(driver.memory, 8, slot) for slot in range(device.queues)]
            driver.start(device.features)
            assert driver.get(0x70) == 15
            works(driver, device)
        finally:
            driver.close()

    assert check


def test_block(tmp_path: Path) -> None:
    contents = os.urandom(64 << 10)
    path = tmp_path / "disk"
    path.write_bytes(contents)

    def works(driver: Driver, _: Device) -> None:
        header = struct.pack("<IIQ", 0, 0, 3)
        head = driver.ask(0, [(header, 0), (bytes(1024), WRITE), (b"\xff", WRITE)])
        assert driver.queues[0].used() == [(head, 1025)]
        assert driver.answer(0, head, 1, 1024) == contents[3 * 512 : 5 * 512]
        assert driver.answer(0, head, 2, 1) == b"\0"

    fuzz(lambda _: Block(os.open(path, os.O_RDONLY), "base"), works)
    assert path.read_bytes() == contents, "it is read only"


def test_entropy() -> None:
    def works(driver: Driver, _: Device) -> None:
        head = driver.ask(0, [(bytes(32), WRITE)])
        assert driver.queues[0].used() == [(head, 32)]
        assert driver.answer(0, head, 0, 32) != bytes(32)

    fuzz(lambda _: Entropy(), works)


def test_console() -> None:
    heard: list[bytes] = []

    def sink(data: bytes) -> None:
        assert 0 < len(data) <= CHUNK
        heard.append(data)

    def works(driver: Driver, device: Device) -> None:
        assert isinstance(device, Console) and len(device._pending) <= PENDING_LIMIT
        heard.clear()
        driver.ask(TX_CONTROL, [(struct.pack("<IHH", 1, 3, 1), 0)])
        head = driver.ask(RX_CONTROL, [(bytes(64), WRITE)])
        assert AGENT_PORT.encode() in driver.answer(RX_CONTROL, head, 0, 64)
        driver.ask(TX_CONTROL, [(struct.pack("<IHH", 1, 6, 1), 0)])
        driver.ask(TX_AGENT, [(b"to the monitor", 0)])
        assert heard == [b"to the monitor"]
        assert device.send(b"to the agent")
        head = driver.ask(RX_AGENT, [(bytes(64), WRITE)])
        assert driver.answer(RX_AGENT, head, 0, 12) == b"to the agent"

    fuzz(lambda _: Console(sink, sink), works)


def test_balloon() -> None:
    """What is given back are whole pages of the guest's own memory, its rings among them, and not too many."""
    turn: list[int] = []

    def make(memory: GuestMemory) -> Device:
        def discard(offset: int, length: int) -> None:
            assert offset >= 0 and length > 0 and offset % PAGE == length % PAGE == 0 and offset + length <= SIZE
            turn.append(length)
            memory.slice(RAM + offset, length)[:] = bytes(length)

        return Turns(discard)

    class Turns(Balloon):
        def process(self, queues: Sequence[Queue | None], index: int) -> None:
            turn.clear()
            try:
                super().process(queues, index)
            finally:
                assert len(turn) <= MOST_RANGES and sum(turn) <= LIMIT
                assert not turn or (self._reporting and index in REPORTING_QUEUES)

    def works(driver: Driver, _: Device) -> None:
        place = RAM + SIZE - 3 * PAGE
        driver.memory.slice(place, 3 * PAGE)[:] = b"\xff" * (3 * PAGE)
        queue = driver.queues[REPORTING_QUEUES[0]]
        queue.descriptor(0, place + 1, 2 * PAGE, WRITE, 0)
        queue.offer(0)
        driver.transport.process(REPORTING_QUEUES[0])
        assert queue.used() == [(0, 0)] and turn == [PAGE]
        assert driver.memory.slice(place, 3 * PAGE) == b"\xff" * PAGE + bytes(PAGE) + b"\xff" * PAGE

    fuzz(make, works)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, list[tuple[Any, ...]], list[int], int]:
    size = draw(st.sampled_from([1, 2, 4, 8]))
    entries = draw(st.lists(st.tuples(addresses, lengths, flags, indices), min_size=size, max_size=size))
    return size, entries, draw(st.lists(indices, min_size=size, max_size=size)), draw(st.integers(0, size + 1))


def test_queue() -> None:
    """What comes out of a queue lies in memory, is as long as its descriptors say, and comes once."""

    @until_budget(tables())
    def check(example: tuple[int, list[tuple[Any, ...]], list[int], int]) -> None:
        size, entries, heads, offered = example
        driver = Driver(Entropy())
        try:
            ring = DriverQueue(driver.memory, size, 0)
            for index, entry in enumerate(entries):
                ring.descriptor(index, *entry)
            for head in heads[:offered]:
                ring.offer(head)
            ring.set_available_index(offered)
            queue = Queue(driver.memory, size, ring.descriptors, ring.available, ring.used_ring)
            taken = 0
            try:
                while (chain := queue.pop()) is not None:
                    assert chain.head == heads[taken] < size
                    taken += 1
                    parts, index = [], chain.head
                    for _ in range(size):
                        address, length, flag, following = entries[index]
                        assert address >= RAM and address + length <= RAM + SIZE and flag <= 3
                        parts.append((length, bool(flag & WRITE)))
                        if not flag & 1:
                            break
                        index = following
                    ours = [(len(part), False) for part in chain.readable]
                    assert ours + [(len(part), True) for part in chain.writable] == parts
                    queue.push(chain, 0)
            except GuestFault:
                pass
            assert taken <= min(offered, size) <= MAX_SIZE
            assert [head for head, _ in ring.used()] == heads[:taken]
        finally:
            driver.close()

    assert check


def test_features() -> None:
    """A driver gets what it accepted, or the device does not start."""

    @until_budget(st.tuples(st.integers(0, (1 << 64) - 1) | st.just(VERSION_1), st.integers(0, 255)), seconds=5)
    def check(example: tuple[int, int]) -> None:
        features, status = example
        driver = Driver(Entropy())
        try:
            driver.features(features)
            good = features == VERSION_1
            assert bool(driver.get(0x70) & 8) == good
            driver.set_queue(0, driver.queues[0])
            driver.set(0x70, status)
            if status & 4 and not good and not driver.get(0x70) & 8:
                assert driver.transport.failure == "driver started without features"
        finally:
            driver.close()

    assert check
