"""What a guest sees of a PCI device, and what it can do with it."""

from __future__ import annotations

import struct

import pytest
from fakes.fake_pci import FakeDevice, FakeMachine, config_space
from hypothesis import given
from hypothesis import strategies as st

from vambrace.errors import ConfigError, KvmError
from vambrace.pci.bridge import BUS, HostBridge
from vambrace.pci.config import MASTER, MEMORY, ConfigSpace, capabilities, memory_bars
from vambrace.pci.function import Function, Region, Window
from vambrace.pci.msix import Message

LOW = Window(0x1000_0000, 0x4000_0000)
HIGH = Window(0x40_0000_0000, 0x80_0000_0000)
NUMBER = 1 << 3
MSIX_CONTROL = 0x42


class Guest:
    """A guest's accesses to one function at device number 1."""

    def __init__(self, device: FakeDevice | None = None, machine: FakeMachine | None = None) -> None:
        self.device = device or FakeDevice()
        self.machine = machine or FakeMachine()
        self.function = Function(NUMBER, self.device, self.machine, (LOW, HIGH))
        self.bridge = HostBridge([self.function])

    def read(self, offset: int, length: int = 4) -> int:
        return int.from_bytes(self.bridge.read_config((NUMBER << 12) + offset, length), "little")

    def write(self, offset: int, value: int, length: int = 4) -> None:
        self.bridge.write_config((NUMBER << 12) + offset, value.to_bytes(length, "little"))

    def place(self, address: int, command: int = MEMORY) -> None:
        self.write(0x10, address & 0xFFFF_FFFF)
        self.write(0x14, address >> 32)
        self.write(0x04, command, 2)

    def kinds(self) -> list[int]:
        """The capabilities that it finds."""
        found, position = [], self.read(0x34, 1)
        while position:
            found.append(self.read(position, 1))
            position = self.read(position + 1, 1)
        return found


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_identity_is_the_device_s_and_the_rest_is_not(guest: Guest) -> None:
    assert guest.read(0x00) == 0x0010_1B36
    assert guest.read(0x08) == 0x0108_0202
    assert guest.read(0x2C) == 0x1100_1AF4
    assert guest.read(0x04, 2) == 0, "neither memory nor bus master is on"
    assert guest.read(0x0E, 1) == 0, "one function"
    assert guest.read(0x3D, 1) == 0, "no interrupt pin"
    assert guest.read(0x30) == 0, "no expansion ROM"
    assert guest.read(0x18) == 0, "no ports"
    assert guest.read(0x100) == 0, "no extended capabilities"


def test_only_known_capabilities_are_seen(guest: Guest) -> None:
    assert guest.kinds() == [0x11, 0x01, 0x10, 0x09]


def test_a_guest_cannot_reset_its_device_nor_see_that_it_could(guest: Guest) -> None:
    express = 0x40 + 12 + 8
    assert guest.read(express, 1) == 0x10
    assert not guest.read(express + 4) & 1 << 28
    guest.write(express + 8, 0x8000 | 0x2810, 2)
    assert guest.read(express + 8, 2) == 0x2810
    assert guest.read(express + 2, 2) >> 4 & 0xF == 9, "it stands below no port"
    assert guest.device.written == [(4, b"\2\0")], "nothing but its memory was switched on"


@pytest.mark.parametrize("several", [False, True])
def test_functions_of_one_group_are_announced(several: bool) -> None:
    space = config_space()
    config = ConfigSpace(space, memory_bars(space, (0x4000,)), lambda: None, several=several)
    assert config.read(0x0E, 1)[0] == (0x80 if several else 0)


def test_the_size_of_a_region_is_told_as_usual(guest: Guest) -> None:
    guest.write(0x10, 0xFFFF_FFFF)
    guest.write(0x14, 0xFFFF_FFFF)
    assert guest.read(0x10) == 0xFFFF_C004
    assert guest.read(0x14) == 0xFFFF_FFFF


@given(st.integers(0, 30), st.integers(0, (1 << 64) - 1), st.booleans())
def test_a_region_lies_at_multiples_of_its_size(power: int, address: int, wide: bool) -> None:
    size = max(1 << power, 4096)
    space = bytearray(config_space())
    struct.pack_into("<II", space, 0x10, 4 if wide else 0, 0)
    bars = memory_bars(bytes(space), (1 << power, 0, 0, 0, 0, 0))
    config = ConfigSpace(bytes(space), bars, lambda: None)
    config.write(0x10, (address & 0xFFFF_FFFF).to_bytes(4, "little"))
    config.write(0x14, (address >> 32).to_bytes(4, "little"))
    assert config.address(bars[0]) == (address if wide else address & 0xFFFF_FFFF) // size * size


@given(st.integers(0, 4095), st.binary(min_size=1, max_size=8))
def test_what_stands_fast_stands_fast(offset: int, data: bytes) -> None:
    """Whatever is written where, identity, class and the positions of capabilities stay."""
    guest = Guest()
    before = [guest.read(fixed) for fixed in (0x00, 0x08, 0x2C, 0x34)], guest.kinds()
    guest.function.config.write(offset, data)
    assert before == ([guest.read(fixed) for fixed in (0x00, 0x08, 0x2C, 0x34)], guest.kinds())
    for place, value in guest.device.written:
        assert place == 4
        assert not int.from_bytes(value, "little") & ~(MEMORY | MASTER)


@given(st.binary(min_size=256, max_size=256))
def test_any_device_is_shown_or_refused(space: bytes) -> None:
    """Whatever a device's own configuration space says."""
    try:
        function = Function(NUMBER, FakeDevice(space.ljust(4096, b"\0")), FakeMachine(), (LOW, HIGH))
    except ConfigError:
        return
    function.config.write(4, b"\xff\xff")
    assert not function.config.address(function.config.bars[0]) if function.config.bars else True


def test_a_list_of_capabilities_without_end_is_refused() -> None:
    space = bytearray(config_space())
    space[0x41] = 0x40
    with pytest.raises(ConfigError, match="makes no sense"):
        capabilities(bytes(space))


@pytest.mark.parametrize("table", [0x3FF0, 0x4001_0000 & ~7])
def test_a_table_of_interrupts_outside_of_the_regions_is_refused(table: int) -> None:
    with pytest.raises(ConfigError, match="outside of its regions"):
        Function(NUMBER, FakeDevice(config_space(table=table)), FakeMachine(), (LOW, HIGH))


def test_memory_is_mapped_without_the_pages_of_the_interrupts(guest: Guest) -> None:
    guest.place(0x1000_0000)
    assert list(guest.machine.mapped.values()) == [(0, 0, 0x2000, 0x1000_0000)]
    guest.place(0x40_0000_0000)
    assert list(guest.machine.mapped.values()) == [(0, 0, 0x2000, 0x40_0000_0000)]
    guest.write(0x04, 0, 2)
    assert not guest.machine.mapped


def test_parts_around_the_interrupts_are_mapped() -> None:
    guest = Guest(FakeDevice(config_space(table=0x1010, pending=0x1800)))
    guest.place(0x1000_0000)
    assert list(guest.machine.mapped.values()) == [(0, 0, 0x1000, 0x1000_0000), (0, 0x2000, 0x2000, 0x1000_2000)]


@pytest.mark.parametrize("address", [0, 0x0800_0000, 0x4000_0000, 0x80_0000_0000, 0xFFFF_FFFF_FFFF_C000])
def test_no_region_is_shown_over_anything_else(guest: Guest, address: int) -> None:
    guest.place(address)
    assert not guest.machine.mapped
    assert guest.function.find(address) is None


def test_what_cannot_be_mapped_is_read_one_by_one() -> None:
    guest = Guest(machine=FakeMachine(occupied=(0x1000_0000,)))
    guest.device.memory[0][0x10:0x14] = b"abcd"
    guest.place(0x1000_0000)
    assert not guest.machine.mapped
    assert guest.bridge.read(0x1000_0010, 4) == b"abcd"
    guest.bridge.write(0x1000_0010, b"wxyz")
    assert guest.device.memory[0][0x10:0x14] == b"wxyz"
    assert guest.bridge.read(0x2000_0000, 4) == b"\xff" * 4
    guest.bridge.write(0x2000_0000, b"abcd")


def test_what_reaches_into_the_interrupts_reads_nothing_of_the_device_s(guest: Guest) -> None:
    guest.device.memory[0][0x1FF8:0x2008] = b"before..behind.."  # behind: where the host's interrupts go
    guest.place(0x1000_0000)
    assert guest.bridge.read(0x1000_1FF8, 8) == b"before.."
    assert guest.bridge.read(0x1000_1FFC, 8) == b"\xff" * 8


def test_a_small_region_ends_where_it_ends() -> None:
    guest = Guest(FakeDevice(regions=(Region(0x4000, ()), *(Region(0, ()),) * 5)))
    guest.place(0x1000_0000)
    assert not guest.machine.mapped
    assert guest.bridge.read(0x1000_3FFE, 4) == b"\xff" * 4
    guest.bridge.write(0x1000_3FFE, b"abcd")
    assert not any(guest.device.memory[0])


def test_bus_master_is_off_until_the_guest_wants_it(guest: Guest) -> None:
    assert guest.device.command == MEMORY
    guest.place(0x1000_0000, MEMORY | MASTER | 0xFF00)
    assert guest.device.command == MEMORY | MASTER
    guest.write(0x04, MEMORY, 2)
    assert guest.device.command == MEMORY
    guest.write(0x04, MASTER, 2)
    guest.bridge.quiet()
    assert guest.device.command == 0
    assert not guest.machine.mapped
    guest.place(0x1000_0000, MEMORY | MASTER)  # too late
    assert guest.device.command == 0
    assert not guest.machine.mapped


def test_one_device_that_is_broken_leaves_no_other_with_memory() -> None:
    class Broken(FakeDevice):
        gone = False

        def write_config(self, offset: int, data: bytes) -> None:
            if self.gone:
                raise KvmError("gone")
            super().write_config(offset, data)

    devices = [Broken(), FakeDevice()]
    functions = [
        Function(number << 3, device, FakeMachine(), (LOW, HIGH)) for number, device in enumerate(devices, 1)
    ]
    bridge = HostBridge(functions)
    for number in (1, 2):
        bridge.write_config((number << 15) + 4, MASTER.to_bytes(2, "little"))
    assert [device.command for device in devices] == [MEMORY | MASTER] * 2
    Broken.gone = True
    with pytest.raises(KvmError):
        bridge.quiet()
    assert devices[1].command == 0


def program(guest: Guest, vector: int, address: int, data: int, control: int) -> None:
    where = 0x1000_2000 + 16 * vector
    for offset, value in ((0, address & 0xFFFF_FFFF), (4, address >> 32), (8, data), (12, control)):
        guest.bridge.write(where + offset, value.to_bytes(4, "little"))


def test_interrupts_go_where_the_guest_says_and_never_reach_the_device_s_table(guest: Guest) -> None:
    guest.place(0x1000_0000)
    program(guest, 1, 0x808_0040, 33, 0)
    assert guest.machine.routes == {}
    guest.write(MSIX_CONTROL, 0x8000, 2)
    assert guest.device.interrupts == [100, 101, 102, 103]
    assert guest.machine.routes == {101: Message(0x808_0040, 33)}
    program(guest, 1, 0x808_0040, 34, 1)
    assert guest.machine.routes[101] is None
    program(guest, 1, 0x808_0040, 34, 0)
    assert guest.machine.routes[101] == Message(0x808_0040, 34)
    guest.write(MSIX_CONTROL, 0xC000, 2)
    assert guest.machine.routes[101] is None, "all are masked"
    assert guest.device.interrupts
    guest.write(MSIX_CONTROL, 0, 2)
    assert guest.device.interrupts == []
    assert not any(guest.device.memory[0])
    assert guest.bridge.read(0x1000_2010, 8) == (0x808_0040).to_bytes(8, "little")
    assert guest.bridge.read(0x1000_3000, 8) == bytes(8)


@pytest.mark.parametrize("wide", [False, True])
def test_a_device_without_msi_x_sends_msi(wide: bool) -> None:
    control = 2 << 1 | (1 << 7 if wide else 0) | 1 << 8
    msi = struct.pack("<BBHIIHH", 0x05, 0, control | 1, 0xFEE0_0000, 0, 7, 7)
    guest = Guest(FakeDevice(config_space(capabilities=(msi,))))
    assert guest.kinds() == [0x05]
    assert guest.read(0x42, 2) == control & ~(1 << 8), "off, and without masks"
    guest.write(0x44, 0x808_0043)
    guest.write(0x4C if wide else 0x48, 0x21, 2)
    assert not guest.device.interrupts
    guest.write(0x42, 1 | 1 << 4, 2)
    assert guest.device.interrupts == [100, 101]
    assert guest.machine.routes[100] == Message(0x808_0040, 0x20)
    assert guest.machine.routes[101] == Message(0x808_0040, 0x21)
    assert guest.machine.routes[102] is None
    guest.write(0x42, 1 | 7 << 4, 2)
    assert guest.device.interrupts == [100, 101, 102, 103], "never more than the device has"
    guest.write(0x42, 0, 2)
    assert guest.device.interrupts == []
    assert not any(guest.machine.routes.values())


@given(st.lists(st.tuples(st.integers(0, 0x4000), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))))
def test_no_write_reaches_the_interrupts_of_the_device(writes: list[tuple[int, int, int]]) -> None:
    guest = Guest(FakeDevice(regions=(Region(0x4000, ()), *(Region(0, ()),) * 5)))
    guest.place(0x1000_0000)
    for offset, length, value in writes:
        guest.bridge.write(0x1000_0000 + offset, (value & (1 << 8 * length) - 1).to_bytes(length, "little"))
    table, pending = guest.device.memory[0][0x2000:0x2040], guest.device.memory[0][0x3000:0x3008]
    assert not any(table) and not any(pending)


def test_where_nothing_is_there_are_ones(guest: Guest) -> None:
    assert guest.bridge.read_config(0, 4) == b"\xff" * 4
    assert guest.bridge.read_config(BUS - 4096, 2) == b"\xff" * 2
    assert guest.bridge.read_config((NUMBER << 12) + 1, 4) == b"\xff" * 4, "not aligned"
    guest.bridge.write_config(0, b"\0\0\0\0")
    guest.bridge.write_config((NUMBER << 12) + 5, b"\xff\xff")
    assert guest.read(0x04, 2) == 0
