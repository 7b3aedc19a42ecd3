"""The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2).

Register accesses arrive from vCPU threads, kicks as eventfds in the I/O thread; one lock orders them.
Interrupts are edges through an irqfd, hence InterruptStatus always says "used buffers".
"""

from __future__ import annotations

import os
import threading

from vambrace.virtio.device import VERSION_1, Device, KernelDevice, Ring, signal
from vambrace.virtio.memory import GuestFault, GuestMemory
from vambrace.virtio.queue import MAX_SIZE, Queue

NOTIFY = 0x50  # the QueueNotify register, where ioeventfds listen

_MAGIC, _VERSION, _DEVICE, _VENDOR = 0x00, 0x04, 0x08, 0x0C
_FEATURES, _FEATURES_SELECT, _DRIVER, _DRIVER_SELECT = 0x10, 0x14, 0x20, 0x24
_QUEUE_SELECT, _QUEUE_MAX, _QUEUE_SIZE, _QUEUE_READY = 0x30, 0x34, 0x38, 0x44
_INTERRUPT, _ACKNOWLEDGE, _STATUS = 0x60, 0x64, 0x70
_ADDRESSES = {
    0x80: ("descriptors", 0),
    0x84: ("descriptors", 32),
    0x90: ("available", 0),
    0x94: ("available", 32),
    0xA0: ("used", 0),
    0xA4: ("used", 32),
}
_SHARED_MEMORY = range(0xB0, 0xC0, 4)  # length and base: all ones, there is none
_CONFIG = 0x100
_CONSTANTS = {
    _MAGIC: int.from_bytes(b"virt", "little"),
    _VERSION: 2,
    _VENDOR: int.from_bytes(b"VMB1", "little"),
    **dict.fromkeys(_SHARED_MEMORY, 0xFFFFFFFF),
}

_DRIVER_OK, _FEATURES_OK, _NEEDS_RESET = 4, 8, 64
_USED_BUFFER, _CONFIG_CHANGE = 1, 2


class _Setup:
    """One queue while the driver sets it up."""

    def __init__(self) -> None:
        self.size = 0
        self.ready = False
        self.address = {"descriptors": 0, "available": 0, "used": 0}

    def ring(self) -> Ring:
        return Ring(self.size, self.address["descriptors"], self.address["available"], self.address["used"])


class Transport:
    """One device's registers. ``kicks`` (an eventfd for each queue) and ``interrupt`` belong to it."""

    def __init__(self, device: Device, memory: GuestMemory) -> None:
        self.device = device
        self.failure: str | None = None  # why the device needs a reset
        self._memory = memory
        self.lock = threading.RLock()  # whoever calls ``device`` from outside holds it
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.interrupt = os.eventfd(0, flags)
        self.kicks = tuple(os.eventfd(0, flags) for _ in range(device.queues))
        self._clear()

    def _clear(self) -> None:
        self._status = 0
        self._features_select = self._driver_select = self._queue_select = 0
        self._features = 0
        self._config_changed = False
        self._setup = [_Setup() for _ in range(self.device.queues)]
        self._queues: list[Queue | None] = [None] * self.device.queues
        self.failure = None

    def close(self) -> None:
        """Free the device and the eventfds. No vCPU and no I/O thread may be running."""
        self.device.close()
        self._queues.clear()
        for fd in (self.interrupt, *self.kicks):
            os.close(fd)

    # --- the guest's side --------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """The guest reads ``length`` bytes at ``offset``; an impossible access reads zeros."""
        with self.lock:
            if offset >= _CONFIG:
                start = offset - _CONFIG
                return self.device.config[start : start + length].ljust(length, b"\0")
            value = self._read(offset) if length == 4 and offset % 4 == 0 else 0
            return value.to_bytes(4, "little")[:length].ljust(length, b"\0")

    def _read(self, offset: int) -> int:
        if offset in _CONSTANTS:
            return _CONSTANTS[offset]
        if offset == _DEVICE:
            return self.device.kind
        if offset == _FEATURES:
            shift = 32 * self._features_select
            return (self.device.features >> shift) & 0xFFFFFFFF if shift < 64 else 0
        if offset == _INTERRUPT:
            return _USED_BUFFER | (_CONFIG_CHANGE if self._config_changed else 0)
        if offset == _STATUS:
            return self._status
        if setup := self._selected():
            return {_QUEUE_MAX: MAX_SIZE, _QUEUE_READY: int(setup.ready)}.get(offset, 0)
        return 0

    def write(self, offset: int, data: bytes) -> None:
        """The guest writes; what makes no sense is ignored, what breaks the protocol stops the device."""
        if len(data) != 4 or offset % 4 or offset >= _CONFIG:
            return
        value = int.from_bytes(data, "little")
        with self.lock:
            if self.failure is not None and offset != _ACKNOWLEDGE and (offset != _STATUS or value):
                return  # nothing but a reset helps
            try:
                self._write(offset, value)
            except GuestFault as fault:
                self._fail(fault)

    def _write(self, offset: int, value: int) -> None:
        if offset == _STATUS:
            self._set_status(value)
        elif offset == _FEATURES_SELECT:
            self._features_select = value
        elif offset == _DRIVER_SELECT:
            self._driver_select = value
        elif offset == _QUEUE_SELECT:
            self._queue_select = value
        elif offset == _ACKNOWLEDGE:
            self._config_changed = self._config_changed and not value & _CONFIG_CHANGE
        elif offset == _DRIVER:
            self._accept_features(value)
        elif offset == NOTIFY:
            # Only where no ioeventfd caught it, as for a queue that does not exist.
            if value < len(self.kicks):
                if self.device.direct:
                    self.process(value)
                else:
                    signal(self.kicks[value])
        else:
            self._set_queue(offset, value)

    def _accept_features(self, value: int) -> None:
        if self._status & _FEATURES_OK or self._driver_select > 1:
            return
        shift = 32 * self._driver_select
        self._features = (self._features & ~(0xFFFFFFFF << shift)) | value << shift

    def _selected(self) -> _Setup | None:
        return self._setup[self._queue_select] if self._queue_select < len(self._setup) else None

    def _set_queue(self, offset: int, value: int) -> None:
        setup = self._selected()
        if setup is None or self._status & _DRIVER_OK:
            return
        if offset == _QUEUE_READY:
            setup.ready = bool(value & 1)
            if setup.ready:  # checked now, so that a wrong one is told where it was made
                self._make_queue(setup)
        elif setup.ready:
            return
        elif offset == _QUEUE_SIZE:
            setup.size = value
        elif offset in _ADDRESSES:
            name, shift = _ADDRESSES[offset]
            kept = setup.address[name] & ~(0xFFFFFFFF << shift)
            setup.address[name] = kept | value << shift

    def _make_queue(self, setup: _Setup) -> Queue:
        ring = setup.ring()
        return Queue(self._memory, ring.size, ring.descriptors, ring.available, ring.used)

    def _set_status(self, value: int) -> None:
        if value == 0:
            self.device.reset()
            self._clear()
            return
        if value & _FEATURES_OK and not self._status & _FEATURES_OK:
            wrong = self._features & ~self.device.features or not self._features & VERSION_1
            if wrong:
                value &= ~_FEATURES_OK  # the driver reads it back and gives up
        started = value & _DRIVER_OK and not self._status & _DRIVER_OK
        if started and not value & _FEATURES_OK:
            raise GuestFault("driver started without features")
        # The driver only adds bits, and cannot clear what the device has set.
        self._status |= value & 0xFF & ~_NEEDS_RESET
        if started:
            self._start()

    def _start(self) -> None:
        rings = [setup.ring() if setup.ready else None for setup in self._setup]
        self._queues = [self._make_queue(setup) if setup.ready else None for setup in self._setup]
        self.device.activate(self._queues, self._features)
        if isinstance(self.device, KernelDevice):
            self.device.connect(self._memory, rings, self.kicks, self.interrupt)
        for kick, queue in zip(self.kicks, self._queues, strict=True):
            if queue is not None:
                signal(kick)  # what was made available before now

    def _fail(self, fault: GuestFault) -> None:
        self.failure = str(fault)
        self._status |= _NEEDS_RESET
        self._queues = [None] * self.device.queues
        self.device.reset()
        self._config_changed = True
        signal(self.interrupt)

    # --- the host's side ---------------------------------------------------------------------------------

    def reset(self) -> None:
        """As the driver's reset: the device, in the kernel too, lets go of guest memory."""
        with self.lock:
            self._set_status(0)

    def process(self, index: int) -> None:
        """Serve queue ``index``; for the I/O thread, after a kick, or with news of the device."""
        with self.lock:
            if self.failure is not None or not self._status & _DRIVER_OK or self._queues[index] is None:
                return
            try:
                self.device.process(self._queues, index)
                self._notify(index)
            except GuestFault as fault:
                self._fail(fault)

    def _notify(self, index: int) -> None:
        """Tell the guest what was given back, and go on later with what was left for fairness."""
        interrupt = False
        for number, queue in enumerate(self._queues):
            if queue is None or queue.pushed == 0:
                continue
            interrupt = queue.wants_interrupt() or interrupt
            if number == index and (queue.unfinished or queue.pushed >= queue.size):
                signal(self.kicks[index])
            queue.pushed, queue.unfinished = 0, False
        if interrupt:
            signal(self.interrupt)
