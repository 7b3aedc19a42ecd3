"""The console with its ports: the agent's, and one for people."""

from __future__ import annotations

import struct

import pytest
from virtio_driver import RAM, Driver

from vambrace.virtio.console import (
    AGENT_PORT,
    PENDING_LIMIT,
    RX_AGENT,
    RX_CONSOLE,
    RX_CONTROL,
    TX_AGENT,
    TX_CONSOLE,
    TX_CONTROL,
    Console,
)
from vambrace.virtio.device import VERSION_1

WRITE = 2
NEEDS_RESET = 64
READY, OPEN = 3, 6


class Ports:
    """A console whose driver has brought both ports up."""

    def __init__(self, *, debug: bool = False) -> None:
        self.from_agent: list[bytes] = []
        self.printed: list[bytes] = []
        self.console = Console(self.from_agent.append, self.printed.append if debug else None)
        self.driver = Driver(self.console, size=16)
        self.driver.start(self.console.features)
        self.heads = [self.driver.ask(RX_CONTROL, [(bytes(64), WRITE)]) for _ in range(8)]
        self.control(0, 0, 1)
        self.control(0, READY, 1)
        self.control(1, READY, 1)

    def control(self, port: int, event: int, value: int) -> None:
        self.driver.ask(TX_CONTROL, [(struct.pack("<IHH", port, event, value), 0)])

    def heard(self) -> list[tuple[int, int, int, bytes]]:
        """Control messages that the device sent."""
        messages = []
        for head, length in self.driver.queues[RX_CONTROL].used():
            data = self.driver.answer(RX_CONTROL, head, 0, length)
            messages.append((*struct.unpack_from("<IHH", data), data[8:]))
        return messages


def test_console_introduces_its_ports() -> None:
    ports = Ports()
    assert ports.heard() == [
        (0, 1, 1, b""),
        (1, 1, 1, b""),
        (0, 4, 1, b""),
        (0, 6, 1, b""),
        (1, 7, 1, AGENT_PORT.encode()),
        (1, 6, 1, b""),
    ]
    ports.driver.close()


def test_agent_bytes_go_both_ways_and_wait_for_an_open_port() -> None:
    ports = Ports()
    assert ports.console.send(RX_AGENT, b"early ")
    head = ports.driver.ask(RX_AGENT, [(bytes(64), WRITE)])
    assert ports.driver.queues[RX_AGENT].used() == []
    ports.control(1, OPEN, 1)
    assert ports.driver.queues[RX_AGENT].used() == [(head, 6)]
    ports.driver.ask(TX_AGENT, [(b"from the ", 0), (b"agent", 0)])
    assert b"".join(ports.from_agent) == b"from the agent"
    ports.driver.close()


def test_agent_bytes_that_nobody_reads_are_bounded_and_dropped_at_close() -> None:
    ports = Ports()
    ports.control(1, OPEN, 1)
    assert ports.console.send(RX_AGENT, bytes(PENDING_LIMIT))
    assert not ports.console.send(RX_AGENT, b"x")
    ports.control(1, OPEN, 0)
    assert ports.console.send(RX_AGENT, b"x")
    ports.driver.close()


@pytest.mark.parametrize("debug", [False, True])
def test_console_output_is_seen_in_debug_only(debug: bool) -> None:
    ports = Ports(debug=debug)
    ports.driver.ask(TX_CONSOLE, [(b"secret", 0)])
    assert ports.printed == ([b"secret"] if debug else [])
    assert len(ports.driver.queues[TX_CONSOLE].used()) == 1
    ports.driver.close()


@pytest.mark.parametrize(
    ("queue", "parts"),
    [(TX_CONTROL, [(b"short", 0)]), (TX_AGENT, [(bytes(30000), 0)] * 5)],
)
def test_hostile_console_requests(queue: int, parts: list[tuple[bytes, int]]) -> None:
    ports = Ports()
    rings = ports.driver.queues[queue]
    if queue == TX_AGENT:  # five descriptors, each of them nearly all of memory
        for index in range(5):
            rings.descriptor(index, RAM, ports.driver.memory.size, 1 if index < 4 else 0, index + 1)
        rings.offer(0)
        ports.driver.transport.process(queue)
    else:
        ports.driver.ask(queue, parts)
    assert ports.driver.get(0x70) & NEEDS_RESET
    assert ports.from_agent == []
    ports.driver.close()


def test_control_messages_that_are_never_taken_are_bounded() -> None:
    console = Console(lambda data: None, None)
    driver = Driver(console, size=16)
    driver.start(console.features)
    for _ in range(100):
        driver.ask(TX_CONTROL, [(struct.pack("<IHH", 0, 0, 1), 0)])
    assert driver.get(0x70) & NEEDS_RESET
    driver.close()


def test_a_console_for_the_operator_alone() -> None:
    """No agent's port is announced; what is typed waits until the guest has its console open."""
    printed: list[bytes] = []
    console = Console(None, printed.append)
    driver = Driver(console)
    driver.start(VERSION_1 | 2)
    for _ in range(4):
        driver.queues[RX_CONTROL].add([(bytes(64), WRITE)])
    driver.ask(TX_CONTROL, [(struct.pack("<IHH", 0, 0, 1), 0)])  # the driver is ready
    told = [driver.answer(RX_CONTROL, head, 0, 8) for head, _ in driver.queues[RX_CONTROL].used()]
    assert told == [struct.pack("<IHH", 0, 1, 1)]  # one port is added, the console
    assert console.send(RX_CONSOLE, b"root\r")
    head = driver.queues[RX_CONSOLE].add([(bytes(64), WRITE)])
    driver.transport.process(RX_CONSOLE)
    assert driver.queues[RX_CONSOLE].used() == []
    driver.ask(TX_CONTROL, [(struct.pack("<IHH", 0, OPEN, 1), 0)])
    driver.transport.process(RX_CONSOLE)
    assert driver.queues[RX_CONSOLE].used() == [(head, 5)]
    assert driver.answer(RX_CONSOLE, head, 0, 5) == b"root\r"
    driver.ask(TX_CONSOLE, [(b"login: ", 0)])
    assert printed == [b"login: "]
    driver.close()
