"""A whole domain's devices behind its MMIO space, with a driver that does anything, and a judge of what they do.

Real are the machine's dispatch, transports, queues, devices and eventfds. KVM's part (eventfds instead of exits), the
I/O thread's loop and vhost are played here, in one thread: what a script does, it does every time.

What the judge knows comes from the driver's side of memory, never from ``Queue``: which bytes the driver has let a
device write, read from the rings as they are before the device is served.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_vhost import FakeVhost
from script import demand

from vambrace.kvm import MmioRead, MmioWrite
from vambrace.machine import layout
from vambrace.machine.vmm import Machine
from vambrace.virtio import block, net, vhost, vsock
from vambrace.virtio.balloon import LIMIT, MOST_RANGES, PAGE, Balloon
from vambrace.virtio.block import Block
from vambrace.virtio.console import CHUNK, PENDING_LIMIT, Console
from vambrace.virtio.device import Device, KernelDevice
from vambrace.virtio.entropy import Entropy
from vambrace.virtio.memory import GuestMemory
from vambrace.virtio.mmio import NOTIFY, Transport
from vambrace.virtio.net import Card

RAM = layout.RAM
SIZE = 96 << 10
RING = 0x800  # each queue's own place, in the order of the devices' queues
NEXT, WRITE = 1, 2
STATUS, NEEDS_RESET = 0x70, 64
_SET_OWNER, _SET_RUNNING, _SET_MEMORY, _SET_RING_ADDRESSES = 0xAF01, 0x4004AF61, 0x4008AF03, 0x4028AF11
_SET_RING_KICK, _SET_RING_CALL, _SET_RING_SIZE, _SET_RING_BASE = 0x4008AF20, 0x4008AF21, 0x4008AF10, 0x4008AF12
#: Requests that a kernel may refuse because of what the guest did; never one that takes something back.
_REFUSED = (_SET_MEMORY, _SET_RING_ADDRESSES, _SET_RING_KICK, _SET_RING_CALL, _SET_RING_SIZE, _SET_RING_BASE)
#: Turns of the I/O thread after which a domain whose driver does nothing more is at rest: one for each request at most.
SETTLED = 300
OWN_SIZE = 16 << 10
READ_LIMIT = 6 << 10  # in the place of the disk's own

Range = tuple[int, int]


class CountedMemory(GuestMemory):
    """Counts the looks at guest memory: what a kick costs, without a clock."""

    looks, most = 0, 1 << 62

    def slice(self, address: int, length: int) -> memoryview:
        self.looks += 1
        demand(self.looks <= self.most, "a kick costs too much")
        part = super().slice(address, length)
        demand(len(part) == length and address >= RAM and address + length <= RAM + SIZE, "outside of guest memory")
        return part


class Kernel:
    """KVM and vhost, as far as one domain's devices see them."""

    newest: Kernel
    owners: dict[int, Kernel] = {}  # by the descriptor of a vhost device or a tap

    def __init__(self, memory: GuestMemory) -> None:
        Kernel.newest = self
        self.memory = memory
        self.notifications: dict[tuple[int, int], int] = {}
        self.running = False  # the socket device
        self.refuse = 0  # so many of the next requests succeed, then one fails; 0: all succeed
        tap = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.card = Card(tap, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), bytes.fromhex("020000000001"), 1500)
        self.vhost_net = FakeVhost(tap)
        for fd in (tap, self.card.vhost):
            Kernel.owners[fd] = self

    def interrupt_on(self, eventfd: int, line: int) -> None:
        os.fstat(eventfd)

    def notify_on(self, eventfd: int, address: int, value: int) -> None:
        self.notifications[address, value] = eventfd

    @classmethod
    def ioctl(cls, fd: int, request: int, argument: int | bytes | bytearray) -> int:
        """Stands in for ``fcntl.ioctl`` of every domain's devices."""
        os.fstat(fd)
        if request == _SET_OWNER and fd not in cls.owners:
            cls.owners[fd] = cls.newest
        return cls.owners[fd]._ioctl(fd, request, argument)

    def _ioctl(self, fd: int, request: int, argument: int | bytes | bytearray) -> int:
        host = self.memory.host
        if request == _SET_RUNNING:
            self.running = argument == struct.pack("<i", 1)
            return 0
        if request == _SET_MEMORY:
            regions, _, base, size, at, _ = struct.unpack("<IIQQQQ", argument)  # type: ignore[arg-type]
            demand((regions, base, size, at) == (1, RAM, SIZE, host), "vhost was given other memory")
        elif request == _SET_RING_ADDRESSES:
            index, flags, *addresses = struct.unpack("<IIQQQ8x", argument)  # type: ignore[arg-type]
            demand(index < 2 and flags == 0, "no such ring")
            demand(all(host <= at < host + SIZE for at in addresses), "vhost was given strange addresses")
        elif request in (_SET_RING_KICK, _SET_RING_CALL):
            os.fstat(struct.unpack("<Ii", argument)[1])  # type: ignore[arg-type]
        if self.refuse and request in _REFUSED:
            self.refuse -= 1
            if not self.refuse:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        if fd in (self.card.tap, self.card.vhost):
            return self.vhost_net.ioctl(fd, request, argument)
        demand(request == _SET_OWNER or not self.running, "vhost is set up anew while it runs")
        return 0

    @property
    def forwards(self) -> bool:
        """Whether packets go through the network card."""
        return any(tap >= 0 for tap in self.vhost_net.backends.values())


class Disks:
    """In place of ``os`` in disks: counts what is read and written."""

    read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = os.preadv(fd, buffers, offset)
        self.read += count
        return count

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = os.pwritev(fd, buffers, offset)
        self.read += count
        return count

    def fdatasync(self, fd: int) -> None:
        pass  # as slow as the machine's disk


DISKS = Disks()


def install() -> None:
    """Before the first domain: this process is the fuzzer's alone."""
    for module in (vsock, vhost, net):
        vars(module)["fcntl"] = Kernel
    block.os, block.READ_LIMIT = DISKS, READ_LIMIT  # type: ignore[assignment]


class Vcpu:
    """One exit of a guest's processor."""

    def __init__(self, exit: MmioRead | MmioWrite) -> None:
        self._exit = exit
        self.data = b""

    def run(self) -> MmioRead | MmioWrite:
        return self._exit

    def answer(self, data: bytes) -> None:
        self.data = data


class Domain:
    """``disk`` is the read-only disk's file. ``close`` when done with it."""

    def __init__(self, disk: Path) -> None:
        self._buffer = (ctypes.c_ubyte * SIZE)()
        self.view = memoryview(self._buffer).cast("B")
        self.memory = CountedMemory(self.view, RAM, ctypes.addressof(self._buffer))
        self.kernel = Kernel(self.memory)
        self.heard: list[bytes] = []
        self.console = Console(self._hear, self._hear)
        self.turn: list[int] = []  # what the balloon gave back since the last kick
        self.machine = Machine(self._hear, self._hear)
        file = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
        socket_device = vsock.Vsock(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 7)
        devices: list[Device] = [self.console, Block(file, "base"), socket_device, Entropy(), Balloon(self._discard)]
        devices.append(net.Net(self.kernel.card))
        self.own = os.memfd_create("disk", os.MFD_CLOEXEC)  # what the guest may write to
        os.ftruncate(self.own, OWN_SIZE)
        devices.append(Block(os.dup(self.own), "own", writable=True))
        for slot, device in enumerate(devices):
            vm: Any = self.kernel
            self.machine._devices.add(vm, self.memory, slot, device)
        self.transports: list[Transport] = self.machine._devices.transports
        self.queues = [(slot, index) for slot, device in enumerate(devices) for index in range(device.queues)]
        self.offered = [0] * len(self.queues)
        self.shadow = bytearray(SIZE)

    def close(self) -> None:
        for transport in self.transports:
            transport.close()
        Kernel.owners = {fd: kernel for fd, kernel in Kernel.owners.items() if kernel is not self.kernel}
        os.close(self.own)
        os.close(self.machine.ended_fd)
        os.close(self.machine._io_wake)

    def _hear(self, data: bytes) -> None:
        demand(0 < len(data) <= CHUNK, "the daemon gets a piece of another size")
        self.heard.append(data)

    def _discard(self, offset: int, length: int) -> None:
        demand(offset >= 0 and length > 0 and not offset % PAGE and not length % PAGE, "no whole pages are discarded")
        demand(offset + length <= SIZE, "what is discarded is not in guest memory")
        self.turn.append(length)
        self.view[offset : offset + length] = bytes(length)

    # The driver's side

    def put(self, offset: int, data: bytes) -> None:
        """The driver writes memory."""
        data = data[: SIZE - offset]
        self.view[offset : offset + len(data)] = data
        self.shadow[offset : offset + len(data)] = data

    def bytes(self, offset: int, length: int) -> bytes:
        """What the driver sees in memory."""
        return self.view[offset : offset + length].tobytes()

    def store(self, address: int, data: bytes) -> None:
        """The driver writes to the MMIO space."""
        kernel = self.kernel
        eventfd = kernel.notifications.get((address, int.from_bytes(data, "little"))) if len(data) == 4 else None
        if eventfd is not None:
            os.eventfd_write(eventfd, 1)
        else:
            self.machine._step(Vcpu(MmioWrite(address, data)))  # type: ignore[arg-type]

    def load(self, address: int, length: int) -> bytes:
        vcpu = Vcpu(MmioRead(address, length))
        self.machine._step(vcpu)  # type: ignore[arg-type]
        demand(len(vcpu.data) == length, "a read has another length")
        return vcpu.data

    def set(self, slot: int, register: int, value: int) -> None:
        self.store(layout.device_address(slot) + register, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def get(self, slot: int, register: int) -> int:
        return int.from_bytes(self.load(layout.device_address(slot) + register, 4), "little")

    def ring(self, queue: int) -> int:
        """Offset of the descriptors of a queue, where the driver has them unless it says otherwise."""
        return queue * RING

    def set_queue(self, queue: int, size: int, descriptors: int, available: int, used: int) -> None:
        slot, index = self.queues[queue]
        self.set(slot, 0x30, index)
        self.set(slot, 0x38, size)
        for register, address in ((0x80, descriptors), (0x90, available), (0xA0, used)):
            self.set(slot, register, address)
            if address >> 32:
                self.set(slot, register + 4, address >> 32)
        self.set(slot, 0x44, 1)

    def start(self, slot: int, size: int) -> None:
        """As Linux does it, from its reset on."""
        features = self.transports[slot].device.features
        for status in (0, 1, 3):
            self.set(slot, STATUS, status)
        for half in (0, 1):
            self.set(slot, 0x24, half)
            self.set(slot, 0x20, features >> 32 * half)
        self.set(slot, STATUS, 11)
        for queue, (owner, _) in enumerate(self.queues):
            if owner == slot:
                base = self.ring(queue)
                self.offered[queue] = 0
                self.put(base, bytes(RING))
                self.set_queue(queue, size, RAM + base, RAM + base + 0x200, RAM + base + 0x400)
        self.set(slot, STATUS, 15)

    def descriptor(self, queue: int, index: int, address: int, length: int, flags: int, following: int) -> None:
        packed = struct.pack("<QIHH", address & (1 << 64) - 1, length, flags, following)
        self.put(self.ring(queue) + 16 * (index % 32), packed)

    def offer(self, queue: int, head: int, size: int) -> None:
        base = self.ring(queue) + 0x200
        self.put(base + 4 + 2 * (self.offered[queue] % size), struct.pack("<H", head & 0xFFFF))
        self.index(queue, self.offered[queue] + 1)

    def index(self, queue: int, value: int) -> None:
        self.offered[queue] = value & 0xFFFF
        self.put(self.ring(queue) + 0x202, struct.pack("<H", self.offered[queue]))

    def kick(self, queue: int) -> None:
        slot, index = self.queues[queue]
        self.set(slot, NOTIFY, index)

    # The I/O thread's side

    def io(self) -> int:
        """One turn: serve every queue that was kicked. How many these were."""
        served = 0
        for slot, transport in enumerate(self.transports):
            if isinstance(transport.device, KernelDevice):
                continue
            for index, kick in enumerate(transport.kicks):
                try:
                    os.eventfd_read(kick)
                except BlockingIOError:
                    continue
                served += 1
                self._serve(slot, transport, index)
        return served

    def settle(self) -> None:
        """The driver rests: soon the devices do."""
        for _ in range(SETTLED):
            if not self.io():
                return
        # A device that writes into the ring of what is available makes itself new work, its own processor's.
        demand(any(self._entangled(transport) for transport in self.transports), "the devices never rest")

    def _serve(self, slot: int, transport: Transport, index: int) -> None:
        demand(bytes(self.view) == self.shadow, "guest memory was written outside of a queue's turn")
        others = [other.failure for other in self.transports if other is not transport]
        allowed = None if self._entangled(transport) else self._allowed(transport)
        self.memory.looks = DISKS.read = 0
        self.memory.most = _most(transport)
        self.turn.clear()
        transport.process(index)
        self.memory.most = 1 << 62
        demand(DISKS.read <= 2 * READ_LIMIT, "a kick moves too much of a disk")
        demand(len(self.turn) <= MOST_RANGES and sum(self.turn) <= LIMIT, "a kick discards too much")
        demand(
            others == [other.failure for other in self.transports if other is not transport], "another device failed"
        )
        if allowed is not None:
            self._compare(allowed)
        self.shadow[:] = self.view

    def _compare(self, allowed: list[Range]) -> None:
        position = 0
        for start, end in sorted([*allowed, (SIZE, SIZE)]):
            if start > position:
                demand(bytes(self.view[position:start]) == self.shadow[position:start], "a device wrote elsewhere")
            position = max(position, end)

    def _rings(self, transport: Transport) -> list[tuple[int, int, int, int]]:
        """Size and the three offsets of each queue that is served, as the driver set them."""
        return [
            (setup.size, *(setup.address[name] - RAM for name in ("descriptors", "available", "used")))
            for setup, queue in zip(transport._setup, transport._queues, strict=True)
            if queue is not None
        ]

    def _allowed(self, transport: Transport) -> list[Range]:
        """What the driver has let the device write: the rings of what was used, and writable buffers of chains that
        wait. The judge does not know from which of the available ones on: those of one whole ring count."""
        found = []
        for size, descriptors, available, used in self._rings(transport):
            found.append((used, used + 6 + 8 * size))
            heads = struct.unpack_from(f"<{size}H", self.shadow, available + 4)
            for index in self._reached(heads, size, descriptors):
                address, length, flags, _ = struct.unpack_from("<QIHH", self.shadow, descriptors + 16 * index)
                if flags & WRITE:
                    found.append((max(0, address - RAM), min(SIZE, address - RAM + length)))
        return found

    def _reached(self, heads: Sequence[int], size: int, descriptors: int) -> set[int]:
        seen: set[int] = set()
        left = [head for head in heads if head < size]
        while left:
            index = left.pop()
            if index not in seen:
                seen.add(index)
                _, _, flags, following = struct.unpack_from("<QIHH", self.shadow, descriptors + 16 * index)
                if flags & NEXT and following < size:
                    left.append(following)
        return seen

    def _entangled(self, transport: Transport) -> bool:
        """Whether the device may write what it reads its orders from: then anything may be its driver's will."""
        orders = []
        for size, descriptors, available, _ in self._rings(transport):
            orders += [(descriptors, descriptors + 16 * size), (available, available + 6 + 2 * size)]
        return any(
            start < end and start < stop and begin < end
            for start, end in self._allowed(transport)
            for begin, stop in orders
        )

    # What holds after every step

    def check(self) -> None:
        demand(os.fstat(self.own).st_size == OWN_SIZE, "a disk has another size")
        console = self.console
        kept = max(len(pending) for pending in console._pending.values())
        demand(kept <= PENDING_LIMIT and len(console._control) <= 64, "the console keeps too much")
        for transport in self.transports:
            failed = transport.failure is not None
            demand(failed == bool(transport._status & NEEDS_RESET), "the driver is not told of the failure")
            demand(not failed or not any(transport._queues), "a device that failed still has queues")
        demand(not (self.kernel.running and self.transports[2].failure), "vhost runs on after a failure")
        demand(not (self.kernel.forwards and self.transports[5].failure), "packets go on after a failure")


def _most(transport: Transport) -> int:
    """Looks at guest memory of one turn: every chain of every queue, each as long as it can be, and messages of the
    console's control queue, which may wait for buffers."""
    return sum(max(queue.size, 64) * (queue.size + 1) for queue in transport._queues if queue is not None)
