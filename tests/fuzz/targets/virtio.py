"""Every virtio device of a domain under a driver that does anything, at any moment."""

from __future__ import annotations

import os
import random
import struct
import tempfile
from pathlib import Path

from domain import NEXT, RAM, RING, SIZE, STATUS, WRITE, Domain, install
from script import Script, demand

from vambrace.machine import layout
from vambrace.virtio.balloon import PAGE, REPORTING_QUEUES
from vambrace.virtio.console import AGENT_PORT, RX_AGENT, RX_CONSOLE, RX_CONTROL, TX_AGENT, TX_CONTROL
from vambrace.virtio.mmio import NOTIFY

CONSOLE, DISK, SOCKET, ENTROPY, BALLOON, NET, OWN = range(7)
DEVICES = 7
REGISTERS = (
    0x14,
    0x20,
    0x24,
    0x30,
    0x38,
    0x44,
    0x50,
    0x64,
    0x70,
    *range(0x80, 0xA8, 4),
    0x34,
    0xB0,
    0xFC,
    0x100,
    0x104,
)
SIZES = (8, 1, 2, 4, 16, 32, 0, 3, 64, 256, 512, 0xFFFF)
DATA = 0xA000
PLACES = (*range(0, SIZE, RING), SIZE - 1, SIZE - 16, SIZE, SIZE + 1, -1, -RAM, (1 << 64) - 1 - RAM, (1 << 63) - RAM)
LENGTHS = (16, 1, 512, 8, 0, 24, 20, 40, 511, 513, 1024, 2048, 4096, 4097, 8192, 0x8000, SIZE, SIZE + 1, 0xFFFF_FFFF)
INPUTS = (1, 40, 32 << 10, (32 << 10) + 1, 1 << 20)
FLAGS = (0, WRITE, NEXT, NEXT | WRITE, WRITE, NEXT, 4, 8, 0xFFFF)

CONTENTS = random.Random(3).randbytes(16 << 10)
with tempfile.NamedTemporaryFile(delete=False) as _file:
    _file.write(CONTENTS)
DISK_FILE = Path(_file.name)

install()
# Another domain with the same disk, which nobody attacks.
HONEST = Domain(DISK_FILE)
HONEST.start(DISK, 8)


def run(data: bytes) -> None:
    script = Script(data)
    domain = Domain(DISK_FILE)
    sizes = [8] * len(domain.queues)
    try:
        if script.number() & 1:
            for slot in range(len(domain.transports)):
                domain.start(slot, 8)
        for _ in range(80):
            if not script.more:
                break
            ACTIONS[script.number() % len(ACTIONS)](domain, script, sizes)
            domain.check()
        domain.settle()
        domain.check()
        for slot in range(len(domain.transports)):
            domain.set(slot, STATUS, 0)
            demand(domain.get(slot, STATUS) == 0, "a reset does not reset")
        demand(not domain.kernel.running and not domain.kernel.forwards, "vhost runs on after a reset")
        works(domain)
        reads(HONEST)
        demand(DISK_FILE.read_bytes() == CONTENTS, "the disk is read only")
    finally:
        domain.close()


# What a driver can do


def store(domain: Domain, script: Script, sizes: list[int]) -> None:
    domain.set(script.below(DEVICES), script.of(REGISTERS), script.edge())


def select(domain: Domain, script: Script, sizes: list[int]) -> None:
    """A register that takes a queue's address, given one in memory."""
    domain.set(script.below(DEVICES), script.of((0x80, 0x90, 0xA0)), RAM + script.of(PLACES) + script.number())


def anywhere(domain: Domain, script: Script, sizes: list[int]) -> None:
    """Any place in the devices' address space and beside it, any width."""
    address = layout.MMIO - 0x100 + script.number(2) % (8 * layout.MMIO_SIZE)
    length = script.of((4, 1, 2, 8))
    if script.number() & 1:
        domain.store(address, script.take(length).ljust(length, b"\0"))
    else:
        domain.load(address, length)


def descriptor(domain: Domain, script: Script, sizes: list[int]) -> None:
    queue, index = script.below(len(domain.queues)), script.below(16)
    address = RAM + script.of(PLACES) + script.number() % 64
    domain.descriptor(queue, index, address, script.of(LENGTHS), script.of(FLAGS), script.number() % 20)


def chain(domain: Domain, script: Script, sizes: list[int]) -> None:
    """A chain as it should be, of buffers anywhere in the data, the readable ones with contents, and offered."""
    queue, head, parts = script.below(len(domain.queues)), script.below(8), 1 + script.below(5)
    readable = script.below(parts + 1)
    for number in range(parts):
        place = DATA + script.number(2) % (SIZE - DATA)
        if number < readable:
            contents = script.text(24)
            domain.put(place, contents)
            length, flags = len(contents), 0
        else:
            length, flags = script.of(LENGTHS[:12]), WRITE
        last = number == parts - 1
        following = (head + number + 1) % 8
        domain.descriptor(queue, (head + number) % 8, RAM + place, length, flags | (0 if last else NEXT), following)
    domain.offer(queue, head, sizes[queue])
    if script.number() & 1:
        domain.kick(queue)


def disk(domain: Domain, script: Script, sizes: list[int]) -> None:
    """A request to a disk, good but for its numbers."""
    queue = domain.queues.index((script.of((DISK, OWN)), 0))
    kind, sector, length = (
        script.of((0, 0, 8, 1, 4, 11, 1)),
        script.of((0, 1, 31, 32, 33, 1 << 55, -1)),
        script.of(LENGTHS),
    )
    domain.put(DATA, struct.pack("<IIQ", kind, 0, sector & (1 << 64) - 1))
    domain.put(
        DATA + 0x1000,
        struct.pack("<QII", script.of((0, 8, 31, 32, -1 & (1 << 64) - 1)), script.edge(), script.below(2)),
    )
    domain.descriptor(queue, 0, RAM + DATA, 16, NEXT, 1)
    way = NEXT if kind in (1, 11) else NEXT | WRITE
    domain.descriptor(queue, 1, RAM + DATA + 0x1000 + script.number(), length, way, 2)
    domain.descriptor(queue, 2, RAM + DATA + 16, 1, WRITE, 0)
    for _ in range(1 + script.below(8)):
        domain.offer(queue, 0, sizes[queue])
    domain.kick(queue)


def control(domain: Domain, script: Script, sizes: list[int]) -> None:
    """A message of the console's driver, and perhaps buffers for the answers."""
    queue = domain.queues.index((CONSOLE, TX_CONTROL))
    for _ in range(1 + script.below(4)):
        message = struct.pack(
            "<IHH", script.of((0, 1, 2, 0xFFFF_FFFF)), script.of((0, 3, 6, 1, 2, 7)), script.of((1, 0, 2))
        )
        domain.put(DATA, message)
        domain.descriptor(queue, 0, RAM + DATA, 8, 0, 0)
        domain.offer(queue, 0, sizes[queue])
        domain.kick(queue)
        if script.number() & 1:
            domain.io()
    answers = domain.queues.index((CONSOLE, RX_CONTROL))
    domain.descriptor(answers, 0, RAM + DATA + 0x100, script.of((64, 8, 22, 7, 0)), WRITE, 0)
    for _ in range(script.below(6)):
        domain.offer(answers, 0, sizes[answers])
    domain.kick(answers)


def offer(domain: Domain, script: Script, sizes: list[int]) -> None:
    queue = script.below(len(domain.queues))
    domain.offer(queue, script.of((*range(16), 255, 256, 0xFFFF)), sizes[queue] or 8)


def jump(domain: Domain, script: Script, sizes: list[int]) -> None:
    domain.index(script.below(len(domain.queues)), script.number(2))


def scribble(domain: Domain, script: Script, sizes: list[int]) -> None:
    place = script.number(2) % SIZE
    domain.put(place, script.text(24))


def kick(domain: Domain, script: Script, sizes: list[int]) -> None:
    domain.kick(script.below(len(domain.queues)))


def storm(domain: Domain, script: Script, sizes: list[int]) -> None:
    for _ in range(1 + script.below(64)):
        domain.set(script.below(DEVICES), NOTIFY, script.number() % 8)


def turn(domain: Domain, script: Script, sizes: list[int]) -> None:
    domain.io()


def start(domain: Domain, script: Script, sizes: list[int]) -> None:
    slot, size = script.below(DEVICES), script.of(SIZES[:6])
    domain.start(slot, size)
    for queue, (owner, _) in enumerate(domain.queues):
        if owner == slot:
            sizes[queue] = size


def set_up(domain: Domain, script: Script, sizes: list[int]) -> None:
    """A queue anywhere, over others or over itself."""
    queue, size = script.below(len(domain.queues)), script.of(SIZES)
    base = domain.ring(queue)
    places = [RAM + base, RAM + base + 0x200, RAM + base + 0x400]
    moved = script.below(4)
    if moved < 3:
        places[moved] = (RAM + script.of(PLACES) + script.number()) & (1 << 64) - 1
    domain.set_queue(queue, size, *places)
    sizes[queue] = size if 0 < size <= 32 else 8


def negotiate(domain: Domain, script: Script, sizes: list[int]) -> None:
    """Up to where queues are set up, with features of any kind."""
    slot, low, high = (
        script.below(DEVICES),
        script.of((0, 0xFFFF_FFFF, 2, 0x24, 0x20, 0x80, 0x3000_80AB)),
        script.of((1, 1, 1, 0, 0xFFFF_FFFF)),
    )
    for register, value in ((STATUS, 0), (STATUS, 3), (0x24, 0), (0x20, low), (0x24, 1), (0x20, high), (STATUS, 11)):
        domain.set(slot, register, value)


def ready(domain: Domain, script: Script, sizes: list[int]) -> None:
    domain.set(script.below(DEVICES), STATUS, 15)


def reset(domain: Domain, script: Script, sizes: list[int]) -> None:
    domain.set(script.below(DEVICES), STATUS, 0)


def daemon(domain: Domain, script: Script, sizes: list[int]) -> None:
    """The daemon sends to the agent or types at the console, as ``Machine.agent`` and ``Machine.console`` do."""
    size = script.number()
    index = RX_CONSOLE if size & 0x80 else RX_AGENT
    domain.console.send(index, bytes(INPUTS[size % len(INPUTS)]))
    os.eventfd_write(domain.transports[CONSOLE].kicks[index], 1)


def end(domain: Domain, script: Script, sizes: list[int]) -> None:
    """The machine lets go of a device."""
    domain.transports[script.below(DEVICES)].reset()


def refuse(domain: Domain, script: Script, sizes: list[int]) -> None:
    """The kernel refuses one of the next things that vhost is asked."""
    domain.kernel.refuse = script.below(12)


ACTIONS = (
    *(store, select, anywhere, descriptor, chain, disk, control, offer, jump, scribble, kick, storm, turn, turn, start),
    *(set_up, negotiate, ready, reset, daemon, end, refuse),
)


# What every device does for a driver that means well


def works(domain: Domain) -> None:
    domain.put(0, bytes(SIZE))
    domain.kernel.refuse = 0
    domain.heard.clear()
    for slot in range(len(domain.transports)):
        domain.start(slot, 8)
        demand(domain.get(slot, STATUS) == 15, "a device does not start anew")
    demand(domain.kernel.running and domain.kernel.forwards, "vhost does not start anew")

    reads(domain)
    ask(domain, OWN, 0, DATA, (struct.pack("<IIQ", 1, 0, 5) + bytes(range(256)) * 2, 0), (b"\xff", 1))
    demand(domain.bytes(DATA + 528, 1) == b"\0", "a disk does not write")
    ask(domain, OWN, 0, DATA, (struct.pack("<IIQ", 0, 0, 5), 0), (b"", 512), (b"\xff", 1))
    demand(domain.bytes(DATA + 16, 513) == bytes(range(256)) * 2 + b"\0", "a disk gives what was not written")
    written = ask(domain, ENTROPY, 0, DATA, (bytes(32), 32))
    demand(written == 32 and domain.bytes(DATA, 32) != bytes(32), "no entropy")

    ask(domain, CONSOLE, TX_CONTROL, DATA, (struct.pack("<IHH", 1, 3, 1), 0))
    written = ask(domain, CONSOLE, RX_CONTROL, DATA, (b"", 64))
    demand(AGENT_PORT.encode() in domain.bytes(DATA, written), "the agent's port has no name")
    ask(domain, CONSOLE, TX_CONTROL, DATA, (struct.pack("<IHH", 1, 6, 1), 0))
    ask(domain, CONSOLE, TX_AGENT, DATA, (b"to the monitor", 0))
    demand(domain.heard == [b"to the monitor"], "the monitor hears otherwise")
    demand(domain.console.send(RX_AGENT, b"to the agent"), "the agent's port takes nothing")
    written = ask(domain, CONSOLE, RX_AGENT, DATA, (b"", 64))
    demand(domain.bytes(DATA, written) == b"to the agent", "the agent hears otherwise")
    ask(domain, CONSOLE, TX_CONTROL, DATA, (struct.pack("<IHH", 0, 6, 1), 0))
    demand(domain.console.send(RX_CONSOLE, b"typed"), "the console takes nothing")
    written = ask(domain, CONSOLE, RX_CONSOLE, DATA, (b"", 64))
    demand(domain.bytes(DATA, written) == b"typed", "the console hears otherwise")

    place = DATA + 2 * PAGE
    domain.put(place, b"\xff" * 3 * PAGE)
    ask(domain, BALLOON, REPORTING_QUEUES[0], place + 1, (b"", 2 * PAGE))
    demand(domain.bytes(place, 3 * PAGE) == b"\xff" * PAGE + bytes(PAGE) + b"\xff" * PAGE, "other pages are discarded")


def reads(domain: Domain) -> None:
    written = ask(domain, DISK, 0, DATA, (struct.pack("<IIQ", 0, 0, 3), 0), (b"", 1024), (b"\xff", 1))
    demand(written == 1025 and domain.bytes(DATA + 16, 1025) == CONTENTS[1536:2560] + b"\0", "the disk gives otherwise")


def ask(domain: Domain, slot: int, index: int, place: int, *parts: tuple[bytes, int]) -> int:
    """One request, its buffers from ``place`` on: contents, and where the device writes, the length. What it wrote."""
    queue = domain.queues.index((slot, index))
    for number, (contents, length) in enumerate(parts):
        domain.put(place, contents)
        flags = (WRITE if length else 0) | (NEXT if number < len(parts) - 1 else 0)
        domain.descriptor(queue, number, RAM + place, length or len(contents), flags, number + 1)
        place += length or len(contents)
    domain.offer(queue, 0, 8)
    domain.kick(queue)
    domain.settle()
    used = domain.ring(queue) + 0x400
    (count,) = struct.unpack_from("<H", domain.view, used + 2)
    demand(count == domain.offered[queue], "a request does not come back")
    head, written = struct.unpack_from("<II", domain.view, used + 4 + 8 * ((count - 1) % 8))
    demand(head == 0, "another request comes back")
    return int(written)
