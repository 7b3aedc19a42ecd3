"""PCI devices that a guest has: their configuration space, regions and interrupts, and the IOMMU before them."""

from __future__ import annotations

import struct

from fakes.fake_pci import FakeDevice, FakeMachine, config_space
from script import Script, demand
from test_virtio_iommu import CARD, DISK, TWIN, Guest
from virtio_driver import RAM, DriverQueue

from vambrace.pci.bridge import HostBridge
from vambrace.pci.config import MASTER, MEMORY
from vambrace.pci.function import Function, Region, Window

PAGE = 4096
LOW = Window(0x1000_0000, 0x4000_0000)
HIGH = Window(0x40_0000_0000, 0x80_0000_0000)
FIRST, SECOND = 1 << 3, 2 << 3
INTERRUPTS = range(0x2000, 0x4000)  # of the first device's region: the table's page, and that of what is pending
REGIONS = (Region(0x4000, ()), *(Region(0, ()),) * 5)
OFFSETS = (*range(0, 0x40, 4), *range(0x40, 0xA0, 2), 0xA0, 0xFC, 0xFF, 0x100, 0xFFC, 0xFFF)
ADDRESSES = (0x1000_0000, 0x1000_4000, 0x3FFF_C000, 0x4000_0000, 0x40_0000_0000, 0x7F_FFFF_C000, 0, 0x0A00_0000)
IOVAS = (0, 0x1000, 0x2000, 0x7FF_F000, 0x800_0000, 0x808_0000, 0x810_0000, 0xFFFF_FFFF_F000, 1 << 48, (1 << 64) - PAGE)
SIZES = (PAGE, 2 * PAGE, 1, 0, 16 * PAGE, 64 * PAGE, 65 * PAGE, 256 * PAGE, 257 * PAGE, 1 << 63, (1 << 64) - 1)
PLACES = (RAM, RAM + PAGE, RAM + 255 * PAGE, RAM + 256 * PAGE, RAM - PAGE, RAM + 1, 0, (1 << 64) - PAGE)
ENDPOINTS = (DISK, CARD, TWIN, 0, 9)


class World:
    def __init__(self) -> None:
        self.devices = (FakeDevice(regions=REGIONS), FakeDevice(config_space(table=0x1010, pending=0x1800)))
        self.machine = FakeMachine()
        windows = (LOW, HIGH)
        numbers = zip((FIRST, SECOND), self.devices, strict=True)
        self.functions = [Function(number, device, self.machine, windows) for number, device in numbers]
        self.bridge = HostBridge(self.functions)
        self.guest = Guest()
        # What no write of the guest's changes.
        self.fixed = [self.identity(function) for function in self.functions]

    def identity(self, function: Function) -> bytes:
        return b"".join(
            function.config.read(offset, length) for offset, length in ((0, 4), (8, 4), (0x2C, 4), (0x34, 1))
        )

    def check(self) -> None:
        for function, fixed in zip(self.functions, self.fixed, strict=True):
            demand(self.identity(function) == fixed, "the guest changes what a device is")
        for device in self.devices:
            for place, value in device.written:
                allowed = place == 4 and not int.from_bytes(value, "little") & ~(MEMORY | MASTER)
                demand(allowed, "the guest writes to the device's own configuration")
            del device.written[:-1]  # the last one stands
        demand(not any(self.devices[0].memory[0][INTERRUPTS.start : INTERRUPTS.start + 0x40]), "the device's own table")
        for region, offset, size, address in self.machine.mapped.values():
            demand(size > 0 and offset % PAGE == size % PAGE == address % PAGE == 0, "parts of pages are mapped")
            demand(LOW.holds(address, size) or HIGH.holds(address, size), "a region over something else")
            demand(region == 0 and not 0x1000 <= offset < 0x2000, "the page of a table is mapped")
        self.check_iommu()

    def check_iommu(self) -> None:
        guest = self.guest
        reached = {*guest.disk.pages.values(), *guest.card.pages.values()}
        offsets = {address - guest.host for address, _, _ in reached}
        demand(all(0 <= offset < 1 << 20 for offset in offsets), "a device reaches what is no guest memory")
        demand(offsets <= set(guest.pins.counts), "a device reaches what may be moved away")
        demand(all(read or write for _, read, write in reached), "a mapping without an access")
        demand(len(guest.pins.counts) <= guest.pins.budget, "more is pinned than may be")


def run(data: bytes) -> None:
    script = Script(data)
    world = World()
    try:
        for _ in range(60):
            if not script.more:
                break
            script.of(ACTIONS)(world, script)
            world.check()
        world.bridge.quiet()
        demand(not world.machine.mapped, "a region is mapped in the end")
        for device in world.devices:
            demand(device.command == 0 and not device.interrupts, "a device goes on in the end")
        guest = world.guest
        guest.driver.set(0x70, 0)
        demand(not guest.disk.pages and not guest.card.pages and not guest.pins.counts, "mappings outlive a reset")
        guest.disk.refuse = guest.card.refuse = False
        restart(guest)
        demand(guest.attach(1, DISK) == 0, "the IOMMU does not work after a reset")
        demand(guest.map(1, 0, PAGE, RAM) == 0 and len(guest.disk.pages) == 1, "it does not map after a reset")
    finally:
        world.guest.driver.close()


def restart(guest: Guest) -> None:
    """After a reset: with new rings."""
    driver = guest.driver
    driver.memory.slice(RAM, 0x2_0000)[:] = bytes(0x2_0000)
    driver.queues = [DriverQueue(driver.memory, 8, slot) for slot in range(2)]
    driver.start(guest.device.features)


def configure(world: World, script: Script) -> None:
    number, offset = script.of((FIRST, SECOND, 0, 255)), script.of(OFFSETS)
    length = script.of((4, 2, 1, 8))
    if script.number() & 3:
        world.bridge.write_config((number << 12) + offset, script.take(length).ljust(length, b"\0"))
    else:
        demand(len(world.bridge.read_config((number << 12) + offset, length)) == length, "a read has another length")


def place(world: World, script: Script) -> None:
    """A region somewhere, and the device switched on."""
    base, address = script.of((FIRST, SECOND)) << 12, script.of(ADDRESSES) + (script.number() << 12)
    for offset, length, value in ((0x10, 4, address & 0xFFFF_FFFF), (0x14, 4, address >> 32), (4, 2, script.number())):
        world.bridge.write_config(base + offset, value.to_bytes(length, "little"))


def interrupts(world: World, script: Script) -> None:
    control = script.of((0x8000, 0, 0xC000, 0x4000)).to_bytes(2, "little")
    world.bridge.write_config((script.of((FIRST, SECOND)) << 12) + 0x42, control)


def access(world: World, script: Script) -> None:
    address = script.of(ADDRESSES) + script.number(2) % 0x8000
    length = script.of((4, 8, 2, 1))
    if script.number() & 3:
        world.bridge.write(address, script.take(length).ljust(length, b"\1"))
    else:
        demand(len(world.bridge.read(address, length)) == length, "a read has another length")


def quiet(world: World, script: Script) -> None:
    world.bridge.quiet()


def attach(world: World, script: Script) -> None:
    world.guest.attach(script.below(3), script.of(ENDPOINTS), script.of((0, 0, 0, 1)))


def detach(world: World, script: Script) -> None:
    world.guest.detach(script.below(3), script.of(ENDPOINTS))


def map_(world: World, script: Script) -> None:
    first = script.of(IOVAS) + PAGE * script.below(4)
    size, physical = script.of(SIZES), script.of(PLACES) + PAGE * script.below(4)
    world.guest.map(script.below(3), first & (1 << 64) - 1, size, physical & (1 << 64) - 1, script.of((3, 1, 2, 0, 7)))


def unmap(world: World, script: Script) -> None:
    first = script.of(IOVAS) + PAGE * script.below(4)
    world.guest.unmap(script.below(3), first & (1 << 64) - 1, script.of(SIZES))


def refuse(world: World, script: Script) -> None:
    """The kernel refuses mappings of a device for now."""
    script.of((world.guest.disk, world.guest.card)).refuse = bool(script.number() & 1)


def request(world: World, script: Script) -> None:
    """Any bytes, and room for the answer or not."""
    driver = world.guest.driver
    parts = [(bytes((script.number() % 8,)) + script.text(80), 0), (bytes(script.of((4, 516, 3, 0, 515, 600))), 2)]
    driver.ask(script.below(2), parts)
    if driver.transport.failure is not None:
        demand(not world.guest.pins.counts, "a device that stopped still pins")
        driver.set(0x70, 0)
        restart(world.guest)


def probe(world: World, script: Script) -> None:
    world.guest.ask(struct.pack("<B3xI64x", 5, script.of(ENDPOINTS)), 516)


ACTIONS = (
    *(configure, configure, place, place, interrupts, access, access, quiet),
    *(attach, detach, map_, map_, unmap, refuse, request, probe),
)
