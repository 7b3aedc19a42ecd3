"""A domain's devices, where its vCPUs find them: virtio devices in their slots, and PCI devices."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from functools import partial

from vambrace.config import DomainConfig
from vambrace.errors import ConfigError
from vambrace.kvm import Vm
from vambrace.machine import layout
from vambrace.machine.descriptors import CARD, Descriptors
from vambrace.machine.pci import Pci, assigned
from vambrace.machine.request import LoadRequest
from vambrace.pager import Window
from vambrace.virtio.balloon import Balloon, Discard
from vambrace.virtio.block import Block
from vambrace.virtio.console import Console
from vambrace.virtio.device import Device, KernelDevice
from vambrace.virtio.device import signal as wake
from vambrace.virtio.entropy import Entropy
from vambrace.virtio.memory import GuestMemory
from vambrace.virtio.mmio import NOTIFY, Transport
from vambrace.virtio.net import Card, Net
from vambrace.virtio.vsock import Vsock


class Devices:
    """``agent`` and ``console`` get the guest's bytes in the thread that serves; ``console`` is used only where the
    measured configuration says so.

    ``let_go`` comes when the vCPUs have ended; ``close`` is last.
    """

    def __init__(self, agent: Callable[[bytes], None], console: Callable[[bytes], None]) -> None:
        self.transports: list[Transport] = []
        self.typed = False  # whether the operator has the console; from ``make`` on
        self._agent = agent
        self._typist = console
        self._pci: Pci | None = None

    def make_pci(
        self, vm: Vm, memory: GuestMemory, window: Window, end: int, files: Descriptors, config: DomainConfig
    ) -> None:
        """PCI devices; guest memory ends at ``end``. Raises ``ConfigError``, ``KvmError``, ``UsageError``."""
        self._pci = Pci(vm, memory, window, end, assigned(files, [device.name for device in config.devices]))

    def make(
        self, vm: Vm, memory: GuestMemory, discard: Discard, config: DomainConfig, request: LoadRequest
    ) -> None:
        """All virtio devices that the configuration has. Raises ``ConfigError``, ``KvmError``, ``UsageError``."""
        files = request.descriptors
        self._console = Console(self._agent if config.kind.attested else None, self._typist if config.console else None)
        self.typed = config.console
        makers: dict[str, Callable[[], Device]] = {
            "console": lambda: self._console,
            "vsock": lambda: Vsock(files.take("vhost-vsock"), request.cid),
            "entropy": Entropy,
            "balloon": lambda: Balloon(discard),
        }
        for disk in config.disks:
            makers[f"disk {disk.name}"] = partial(_disk, files, disk.name, disk.name, disk.size, writable=disk.plain)
        for store in config.stores:
            makers[f"disk {store.name}"] = partial(_disk, files, store.name, store.serial, store.size, writable=True)
        for number, (name, card) in enumerate(zip(config.networks, request.cards, strict=True)):
            makers[f"network {name}"] = partial(_card, files, number, *card)
        pci = self._pci
        if pci is not None:
            makers["iommu"] = lambda: pci.iommu
        attested, disks = config.kind.attested, config.block_devices
        slots = layout.device_slots(disks, config.networks, agent=attested, pci=pci is not None)
        for slot, name in enumerate(slots):
            self.add(vm, memory, slot, makers[name]())

    def add(self, vm: Vm, memory: GuestMemory, slot: int, device: Device) -> None:
        """Raises ``KvmError``."""
        transport = Transport(device, memory)
        self.transports.append(transport)
        vm.interrupt_on(transport.interrupt, slot)
        if device.direct:
            return
        for index, kick in enumerate(transport.kicks):
            vm.notify_on(kick, layout.device_address(slot) + NOTIFY, index)

    # --- what vCPUs do -----------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """What a vCPU reads; zeros where there is nothing."""
        transport, offset = self._find(address)
        if transport:
            return transport.read(offset, length)
        return self._pci.read(address, length) if self._pci else bytes(length)

    def write(self, address: int, data: bytes) -> None:
        """What a vCPU writes; nothing happens where there is nothing."""
        transport, offset = self._find(address)
        if transport:
            transport.write(offset, data)
        elif self._pci:
            self._pci.write(address, data)

    def _find(self, address: int) -> tuple[Transport | None, int]:
        slot, offset = divmod(address - layout.MMIO, layout.MMIO_SIZE)
        return (self.transports[slot] if 0 <= slot < len(self.transports) else None), offset

    # --- what the monitor does ---------------------------------------------------------------------------

    def send(self, queue: int, data: bytes) -> bool:
        """Give the guest bytes at a receiving ``queue`` of its console; whether it takes them."""
        transport = next(found for found in self.transports if found.device is self._console)
        with transport.lock:
            accepted = self._console.send(queue, data)
        wake(transport.kicks[queue])
        return accepted

    def serve(self, stop: int, stopping: Callable[[], bool]) -> None:
        """Serve all queues that are not the kernel's, until the eventfd ``stop`` wakes and it is ``stopping``."""
        served = {
            kick: (transport, index)
            for transport in self.transports
            if not isinstance(transport.device, KernelDevice)
            for index, kick in enumerate(transport.kicks)
        }
        with select.epoll() as poll:
            poll.register(stop, select.EPOLLIN)
            for kick in served:
                poll.register(kick, select.EPOLLIN)
            while True:
                for fd, _ in poll.poll():
                    if stopping():
                        return
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    transport, index = served[fd]
                    transport.process(index)

    def let_go(self, *, reset: bool) -> None:
        """Keep PCI devices off the guest's memory, and ``reset`` the others."""
        users = [self._pci.quiet] if self._pci else []
        if reset:
            users += [transport.reset for transport in self.transports]
        for let_go in users:
            # A device that is broken keeps nobody's keys and memory from being wiped.
            with contextlib.suppress(Exception):
                let_go()

    def close(self) -> None:
        for transport in self.transports:
            transport.close()
        if self._pci:
            self._pci.close()


def _card(files: Descriptors, number: int, mac: bytes, mtu: int) -> Net:
    tap, vhost = (files.take(f"{kind}:{number}") for kind in CARD)
    return Net(Card(tap, vhost, mac, mtu))


def _disk(files: Descriptors, name: str, serial: str, size: int, *, writable: bool) -> Block:
    block = Block(files.take(f"{'volume' if writable else 'disk'}:{name}"), serial, writable=writable)
    if block.size != size:
        block.close()
        raise ConfigError(f"disk {name}: {block.size} bytes instead of {size}")
    return block
