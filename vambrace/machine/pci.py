"""A domain's PCI devices made real: VFIO for the devices, KVM for their memory and interrupts, the IOMMU between."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack

from vambrace.errors import ConfigError, KvmError
from vambrace.kvm import Vm
from vambrace.machine import layout
from vambrace.machine.descriptors import Descriptors, device_names
from vambrace.pager import Window, address_of
from vambrace.pci.bridge import HostBridge
from vambrace.pci.function import Function, Hardware
from vambrace.pci.function import Window as Addresses
from vambrace.pci.msix import Message
from vambrace.record import Record
from vambrace.vfio.container import Container
from vambrace.vfio.device import PciDevice
from vambrace.virtio.iommu import Iommu, Reach
from vambrace.virtio.memory import GuestMemory

_FIRST_SLOT = 1  # of KVM's memory slots; 0 is the guest's memory
#: Message interrupts are numbered behind the peripheral ones; KVM has 4096 numbers.
_FIRST_LINE, _LAST_LINE = 64, 4095


class Assigned(Record):
    """Open descriptors of one IOMMU group: its own, that of its container, those of its devices that the guest gets."""

    group: int
    container: int
    devices: tuple[int, ...]


def assigned(files: Descriptors, names: Sequence[str]) -> tuple[Assigned, ...]:
    """The descriptors of devices with these names, by their groups: each has a device file of its own.

    Raises ``UsageError``: one is missing.
    """
    found: dict[int, Assigned] = {}
    for name in names:
        device, group, container = (files.take(one) for one in device_names(name))
        number = os.fstat(group).st_rdev
        if number in found:
            # Sent once for each device.
            os.close(group)
            os.close(container)
            found[number] = found[number].replace(devices=(*found[number].devices, device))
        else:
            found[number] = Assigned(group, container, (device,))
    return tuple(found.values())


class Pci:
    """All PCI devices of one domain. It owns the descriptors. Raises ``KvmError``, ``ConfigError``.

    ``quiet`` comes when the vCPUs have ended, then the reset of its transport for ``iommu``; ``close`` is last.
    """

    def __init__(self, vm: Vm, memory: GuestMemory, window: Window, end: int, groups: Sequence[Assigned]) -> None:
        self._vm = vm
        self._stack = ExitStack()
        self._slots: dict[int, mmap.mmap] = {}
        self._kept: dict[tuple[int, int, int], mmap.mmap] = {}
        self._lines: dict[int, int] = {}  # eventfd → line
        self._connected: set[int] = set()  # eventfds
        self._routes: dict[int, tuple[int, int, int]] = {}
        for group in groups:
            for descriptor in (*group.devices, group.container, group.group):
                self._stack.callback(os.close, descriptor)
        vm.message_interrupts(layout.ITS)
        high = layout.pci_high(end)
        windows = (
            Addresses(layout.PCI_LOW, layout.PCI_LOW + layout.PCI_LOW_SIZE),
            Addresses(high, high + layout.PCI_HIGH_SIZE),
        )
        functions, spaces = [], {}
        for slot, group in enumerate(groups, start=1):
            container = Container(group.container)
            if len(group.devices) > 8 or slot > 31:
                raise ConfigError("more PCI devices than a bus has room for")
            for index, descriptor in enumerate(group.devices):
                number = slot << 3 | index
                # A guest sees devices that cannot be told apart by the IOMMU as functions of one.
                several = len(group.devices) > 1
                functions.append(Function(number, PciDevice(descriptor), self, windows, several=several))
                spaces[number] = container
        self._windows = windows
        self.bridge = HostBridge(functions)
        ranges = _common([container.ranges for container in spaces.values()])
        reach = Reach(ranges, (layout.ITS, layout.ITS + layout.ITS_SIZE - 1))
        self.iommu = Iommu(spaces, memory, window, reach)

    def read(self, address: int, length: int) -> bytes:
        """The guest reads where no virtio device is. Where no PCI device is either, zeros; none of its own: ones."""
        offset = address - layout.PCI_CONFIG
        if 0 <= offset < layout.PCI_CONFIG_SIZE:
            return self.bridge.read_config(offset, length)
        if any(window.holds(address, length) for window in self._windows):
            return self.bridge.read(address, length)
        return bytes(length)

    def write(self, address: int, data: bytes) -> None:
        offset = address - layout.PCI_CONFIG
        if 0 <= offset < layout.PCI_CONFIG_SIZE:
            self.bridge.write_config(offset, data)
        elif any(window.holds(address, len(data)) for window in self._windows):
            self.bridge.write(address, data)

    def quiet(self) -> None:
        """No device reaches memory or sends interrupts any more; resetting them is for whoever gives them on."""
        self.bridge.quiet()

    def close(self) -> None:
        """Gives the descriptors back."""
        self._stack.close()
        for mapping in self._kept.values():
            mapping.close()

    # What functions need (``vambrace.pci.function.Platform``)

    def map(self, hardware: Hardware, region: int, offset: int, size: int, address: int) -> int | None:
        """Show a part of a device's region to the guest. None: something else is at ``address``."""
        assert isinstance(hardware, PciDevice)
        key = (hardware.fd, region, offset)
        if key not in self._kept:
            self._kept[key] = mmap.mmap(hardware.fd, size, offset=hardware.offsets[region] + offset)
        slot = next(slot for slot in range(_FIRST_SLOT, 1 << 14) if slot not in self._slots)
        try:
            self._vm.map(slot, address, address_of(self._kept[key]), size)
        except KvmError:
            return None
        self._slots[slot] = self._kept[key]
        return slot

    def unmap(self, mapping: int) -> None:
        self._vm.map(mapping, 0, 0, 0)
        del self._slots[mapping]

    def vectors(self, count: int) -> list[int]:
        """Eventfds for the interrupts of one device, each with a line of its own; connected once they are routed."""
        first = _FIRST_LINE + len(self._lines)
        if first + count > _LAST_LINE:
            raise ConfigError("the devices have more interrupts than KVM has lines")
        eventfds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
        for index, eventfd in enumerate(eventfds):
            self._stack.callback(os.close, eventfd)
            self._lines[eventfd] = first + index
        return eventfds

    def route(self, function: int, eventfd: int, message: Message | None) -> None:
        """What the interrupt of an eventfd is to the guest; None: it waits in the eventfd."""
        line = self._lines[eventfd]
        if message is None:
            if eventfd in self._connected:
                self._connected.discard(eventfd)
                self._vm.interrupt_off(eventfd, line)
            return
        # Only to the guest's own interrupt translation: KVM would take other addresses for nothing.
        wanted = (message.address, message.data, function)
        if self._routes.get(line) != wanted:
            self._routes[line] = wanted
            self._vm.route(layout.MAX_DEVICES, self._routes)
        if eventfd not in self._connected:
            self._vm.interrupt_on(eventfd, line)
            self._connected.add(eventfd)


def _common(reaches: list[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...]:
    """The ranges that all of these have."""
    common = list(reaches[0])
    for reach in reaches[1:]:
        pairs = [(max(a, c), min(b, d)) for a, b in common for c, d in reach]
        common = [(first, last) for first, last in pairs if first <= last]
    if not common:
        raise ConfigError("the devices have no address in common that they reach")
    return tuple(common)
