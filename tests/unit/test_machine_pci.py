"""How a machine gives its guest devices: memory as slots, interrupts as routes, descriptors by their group."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.fake_pci import FakeDevice
from virtio_driver import guest_memory

from vambrace.errors import ConfigError, KvmError, UsageError
from vambrace.machine import layout, pci
from vambrace.machine.descriptors import Descriptors, device_names
from vambrace.machine.pci import Assigned, Pci, assigned
from vambrace.pci.msix import Message
from vambrace.vfio import abi
from vambrace.vfio.container import _ranges
from vambrace.vfio.device import _sparse

END = 0x5000_0000
RANGES = ((0, 0x7FF_FFFF), (0x810_0000, (1 << 48) - 1))


class Vm:
    """What a VM was told."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.routes: dict[int, tuple[int, int, int]] = {}
        self.connected: dict[int, int] = {}
        self.full = False

    def message_interrupts(self, address: int) -> None:
        assert address == layout.ITS

    def map(self, slot: int, guest: int, host: int, size: int) -> None:
        if self.full and size:
            raise KvmError("something is there")
        self.slots.pop(slot, None)
        if size:
            self.slots[slot] = (guest, host, size)

    def route(self, lines: int, messages: dict[int, tuple[int, int, int]]) -> None:
        assert lines == 32
        self.routes = dict(messages)

    def interrupt_on(self, eventfd: int, line: int) -> None:
        self.connected[eventfd] = line

    def interrupt_off(self, eventfd: int, line: int) -> None:
        assert self.connected.pop(eventfd) == line


class OpenDevice(FakeDevice):
    """A device whose memory is a file that can be mapped."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.offsets = (0,) * 6


class OpenContainer:
    def __init__(self, fd: int) -> None:
        self.ranges = RANGES


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def machine(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pci]:
    monkeypatch.setattr(pci, "PciDevice", OpenDevice)
    monkeypatch.setattr(pci, "Container", OpenContainer)
    groups = []
    for count in (1, 2):
        files = [os.memfd_create("device") for _ in range(count + 2)]
        for file in files:
            os.ftruncate(file, 0x4000)
        groups.append(Assigned(files[0], files[1], tuple(files[2:])))
    told: Any = vm
    none: Any = None
    machine = Pci(told, guest_memory(), none, END, groups)
    yield machine
    machine.close()
    for group in groups:
        for file in (group.group, group.container, *group.devices):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(file)


def config(number: int, offset: int = 0) -> int:
    return layout.PCI_CONFIG + (number << 12) + offset


def write(machine: Pci, address: int, value: int, length: int = 4) -> None:
    machine.write(address, value.to_bytes(length, "little"))


def test_devices_of_one_group_are_functions_of_one_slot(machine: Pci) -> None:
    found = [number for number in range(256) if machine.read(config(number), 4) != b"\xff" * 4]
    assert found == [1 << 3, 2 << 3, 2 << 3 | 1]
    assert [machine.read(config(number, 0x0E), 1)[0] for number in found] == [0, 0x80, 0x80]


def test_where_no_device_can_be_there_are_zeros(machine: Pci) -> None:
    assert machine.read(layout.GIC_DISTRIBUTOR, 4) == bytes(4)
    assert machine.read(layout.PCI_LOW, 4) == b"\xff" * 4
    assert machine.read(layout.pci_high(END), 4) == b"\xff" * 4
    machine.write(END, b"abcd")


def test_memory_of_a_device_becomes_a_slot_and_goes(machine: Pci, vm: Vm) -> None:
    write(machine, config(8, 0x10), layout.PCI_LOW)
    write(machine, config(8, 4), 2, 2)
    assert [(guest, size) for guest, _, size in vm.slots.values()] == [(layout.PCI_LOW, 0x2000)]
    assert 0 not in vm.slots, "that one is the guest's memory"
    write(machine, config(16, 0x10), layout.PCI_LOW + 0x4000)
    write(machine, config(16, 4), 2, 2)
    assert len(vm.slots) == 2
    machine.quiet()
    assert not vm.slots


def test_a_region_over_another_is_not_shown(machine: Pci, vm: Vm) -> None:
    vm.full = True
    write(machine, config(8, 0x10), layout.PCI_LOW)
    write(machine, config(8, 4), 2, 2)
    assert not vm.slots
    assert machine.read(layout.PCI_LOW, 4) == bytes(4), "its device answers all the same"


def test_interrupts_are_routed_while_they_are_not_masked(machine: Pci, vm: Vm) -> None:
    first, second = machine.vectors(2)
    machine.route(8, first, Message(layout.ITS_TRANSLATER, 5))
    machine.route(8, second, Message(layout.ITS_TRANSLATER, 6))
    assert sorted(vm.routes.values()) == [(layout.ITS_TRANSLATER, 5, 8), (layout.ITS_TRANSLATER, 6, 8)]
    assert set(vm.connected.values()) == set(vm.routes)
    machine.route(8, first, None)
    assert set(vm.connected) == {second}
    machine.route(8, first, None)
    machine.route(8, first, Message(layout.ITS_TRANSLATER, 7))
    assert vm.routes[vm.connected[first]] == (layout.ITS_TRANSLATER, 7, 8)
    assert min(vm.routes) >= 32


def test_interrupts_are_not_more_than_kvm_has(machine: Pci) -> None:
    with pytest.raises(ConfigError, match="more interrupts"):
        for _ in range(20):
            machine.vectors(256)


def test_descriptors_are_sorted_by_group() -> None:
    null, zero = (os.open(path, os.O_RDWR) for path in ("/dev/null", "/dev/zero"))
    names = [name for device in ("one", "two", "three") for name in device_names(device)]
    files = []
    for group in (null, zero, null):
        files += [os.eventfd(0), os.dup(group), os.open("/dev/null", os.O_RDWR)]
    with Descriptors(files) as descriptors:
        descriptors.name(names)
        one, two = assigned(descriptors, ["one", "two", "three"])
    assert (one.devices, two.devices) == ((files[0], files[6]), (files[3],))
    for file in (*one.devices, *two.devices, one.group, one.container, two.group, two.container, null, zero):
        os.close(file)


def test_a_file_is_no_device() -> None:
    file = os.memfd_create("file")
    with Descriptors([file]) as descriptors, pytest.raises(UsageError, match="not a device"):
        descriptors.name(["vfio:disk"])


def test_what_the_kernel_says_of_reach_is_read() -> None:
    ranges = struct.pack("<HHIII", abi.IOMMU_INFO_CAP_IOVA_RANGE, 1, 0, 2, 0) + struct.pack("<QQQQ", 0, 9, 20, 29)
    other = struct.pack("<HHII", 7, 1, 40, 0)
    info = struct.pack("<IIQII", 200, abi.IOMMU_INFO_CAPS, 4096, 24, 0) + other + bytes(4) + ranges
    assert _ranges(info) == ((0, 9), (20, 29))
    for wrong in (info[:40], struct.pack("<IIQII", 24, 0, 4096, 0, 0), info[:28] + struct.pack("<I", 24) + info[32:]):
        with pytest.raises(KvmError):
            _ranges(wrong)


def test_parts_that_can_be_mapped_are_read() -> None:
    sparse = struct.pack("<HHIII", abi.REGION_CAP_SPARSE_MMAP, 1, 0, 2, 0) + struct.pack("<QQQQ", 0, 4096, 8192, 0)
    assert _sparse(bytes(32) + sparse, 32) == ((0, 4096),)
    assert _sparse(bytes(64), 32) is None
    loop = bytes(32) + struct.pack("<HHI", 9, 1, 32) + bytes(8)
    assert _sparse(loop, 32) is None


def test_mappings_are_of_this_process() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as mapping:
        assert pci.address_of(mapping) % mmap.PAGESIZE == 0
