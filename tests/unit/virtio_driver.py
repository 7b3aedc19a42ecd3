"""A guest's virtio driver, small, that also does what no driver should."""

from __future__ import annotations

import ctypes
import struct

from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.memory import GuestMemory
from vambrace.virtio.mmio import Transport
from vambrace.virtio.queue import Queue

RAM = 0x4000_0000
_WRITE = 2


def guest_memory(size: int = 1 << 20) -> GuestMemory:
    """Zeroed memory at RAM, as writable as the pager's."""
    buffer = (ctypes.c_ubyte * size)()
    return GuestMemory(memoryview(buffer).cast("B"), RAM, ctypes.addressof(buffer))


class DriverQueue:
    """Driver side of one queue. Ring ``slot`` uses its own 64 KiB of memory."""

    def __init__(self, memory: GuestMemory, size: int, slot: int = 0) -> None:
        self.memory = memory
        self.size = size
        base = RAM + slot * 0x10000
        self.descriptors, self.available, self.used_ring = base, base + 0x2000, base + 0x4000
        self._data = base + 0x8000
        self._next_data = self._data
        self._next_descriptor = 0
        self._offered = 0
        self._seen = 0
        self._buffers: dict[int, list[int]] = {}

    def device_side(self) -> Queue:
        return Queue(self.memory, self.size, self.descriptors, self.available, self.used_ring)

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        packed = struct.pack("<QIHH", address, length, flags, following)
        self.memory.slice(self.descriptors + 16 * index, 16)[:] = packed

    def offer(self, head: int) -> None:
        ring = self.memory.slice(self.available, 6 + 2 * self.size)
        struct.pack_into("<H", ring, 4 + 2 * (self._offered % self.size), head)
        self._offered += 1
        self.set_available_index(self._offered)

    def set_available_index(self, index: int) -> None:
        struct.pack_into("<H", self.memory.slice(self.available, 4), 2, index & 0xFFFF)

    def suppress_interrupts(self) -> None:
        struct.pack_into("<H", self.memory.slice(self.available, 4), 0, 1)

    def add(self, parts: list[tuple[bytes, int]]) -> int:
        """Offer a chain of (contents, flags); buffers are reused after 32 KiB. Returns its head."""
        head = self._next_descriptor % self.size
        self._buffers[head] = []
        for number, (data, flags) in enumerate(parts):
            index = self._next_descriptor % self.size
            self._next_descriptor += 1
            if self._next_data + len(data) > self._data + 0x8000:
                self._next_data = self._data
            address = self._next_data
            self._next_data += len(data)
            self.memory.slice(address, len(data))[:] = data
            last = number == len(parts) - 1
            following = 0 if last else self._next_descriptor % self.size
            self.descriptor(index, address, len(data), flags | (0 if last else 1), following)
            self._buffers[head].append(address)
        self.offer(head)
        return head

    def buffer(self, head: int, part: int) -> int:
        """Guest address of one part of a chain."""
        return self._buffers[head][part]

    def used(self) -> list[tuple[int, int]]:
        """(head, written) of what came back since the last call."""
        ring = self.memory.slice(self.used_ring, 6 + 8 * self.size)
        (index,) = struct.unpack_from("<H", ring, 2)
        back = []
        while self._seen != index:
            back.append(struct.unpack_from("<II", ring, 4 + 8 * (self._seen % self.size)))
            self._seen = (self._seen + 1) & 0xFFFF
        return back


class Driver:
    """Brings a device up through its registers, as Linux does."""

    def __init__(self, device: Device, size: int = 8, memory: GuestMemory | None = None) -> None:
        self.memory = memory or guest_memory()
        self.transport = Transport(device, self.memory)
        self.queues = [DriverQueue(self.memory, size, slot) for slot in range(device.queues)]

    def get(self, offset: int) -> int:
        return int.from_bytes(self.transport.read(offset, 4), "little")

    def set(self, offset: int, value: int) -> None:
        self.transport.write(offset, value.to_bytes(4, "little"))

    def features(self, wanted: int) -> None:
        self.set(0x70, 1)
        self.set(0x70, 3)
        for half in (0, 1):
            self.set(0x24, half)
            self.set(0x20, (wanted >> (32 * half)) & 0xFFFF_FFFF)
        self.set(0x70, 11)

    def set_queue(self, index: int, queue: DriverQueue) -> None:
        self.set(0x30, index)
        self.set(0x38, queue.size)
        for register, address in (
            (0x80, queue.descriptors),
            (0x90, queue.available),
            (0xA0, queue.used_ring),
        ):
            self.set(register, address & 0xFFFF_FFFF)
            self.set(register + 4, address >> 32)
        self.set(0x44, 1)

    def start(self, features: int = VERSION_1) -> None:
        self.features(features)
        for index, queue in enumerate(self.queues):
            self.set_queue(index, queue)
        self.set(0x70, 15)

    def ask(self, index: int, parts: list[tuple[bytes, int]]) -> int:
        head = self.queues[index].add(parts)
        self.transport.process(index)
        return head

    def answer(self, index: int, head: int, part: int, length: int) -> bytes:
        return bytes(self.memory.slice(self.queues[index].buffer(head, part), length))

    def close(self) -> None:
        self.transport.close()
