"""What a domain's memory and vCPUs hold at their first instruction: a pure function of what is measured."""

from __future__ import annotations

from vambrace.config import DomainConfig
from vambrace.errors import ConfigError
from vambrace.machine import layout
from vambrace.machine.devicetree import build_tree
from vambrace.machine.kernel import parse_image
from vambrace.record import Record

# EL1 with its own stack pointer; debug, SError, IRQ and FIQ masked: what PSCI and Linux expect.
_PSTATE = 0x3C5


class ZonePlan(Record):
    """``base`` and ``size`` in bytes, guest-physical."""

    name: str
    base: int
    size: int
    percent: int


class Segment(Record):
    """Initial memory; ``gpa`` is a multiple of the page size."""

    gpa: int
    data: bytes | memoryview


class VcpuState(Record):
    """Registers by name; all others are as after reset. Not powered on: waits for PSCI CPU_ON."""

    index: int
    registers: dict[str, int]
    powered_on: bool


class BootPlan(Record):
    zones: tuple[ZonePlan, ...]
    segments: tuple[Segment, ...]
    vcpus: tuple[VcpuState, ...]
    pci: bool = False

    @property
    def address_bits(self) -> int:
        """So many guest-physical address bits are needed."""
        end = layout.pci_high(self.end) + layout.PCI_HIGH_SIZE if self.pci else self.end
        return (end - 1).bit_length()

    @property
    def end(self) -> int:
        """The first guest-physical address above all memory."""
        return self.zones[-1].base + self.zones[-1].size


def plan_boot(config: DomainConfig, kernel: bytes | memoryview, initrd: bytes | memoryview) -> BootPlan:
    """Raises ``ConfigError``: the kernel is none, or the system's zone is too small."""
    image = parse_image(kernel)
    if not initrd:
        raise ConfigError("the initrd is empty")
    zones = []
    base = layout.RAM
    for zone in config.zones:
        zones.append(ZonePlan(zone.name, base, zone.memory, zone.percent))
        base += zone.memory

    pci = bool(config.devices)
    entry = layout.RAM + image.text_offset
    initrd_start = layout.align(entry + image.size, layout.PAGE)
    initrd_end = initrd_start + len(initrd)
    tree_start = layout.align(initrd_end, layout.BLOCK)
    system_end = zones[0].base + zones[0].size
    if tree_start + layout.BLOCK > system_end:
        needed = layout.align(tree_start + layout.BLOCK - layout.RAM, layout.BLOCK)
        raise ConfigError(
            f"kernel and initrd do not fit in the system's {zones[0].size >> 20} MiB",
            hint=f"they alone take {needed >> 20} MiB: give the system more memory",
        )
    slots = layout.device_slots(config.block_devices, config.networks, agent=config.kind.attested, pci=pci)
    tree = build_tree(
        cmdline=config.cmdline,
        vcpus=config.vcpus,
        zones=[(zone.base, zone.size) for zone in zones],
        initrd=(initrd_start, initrd_end),
        devices=len(slots),
        pci=pci,
    )
    if len(tree) > layout.BLOCK:
        raise ConfigError("the device tree is larger than 2 MiB")
    boot = VcpuState(0, {"pc": entry, "x0": tree_start, "pstate": _PSTATE}, powered_on=True)
    others = (VcpuState(index, {}, powered_on=False) for index in range(1, config.vcpus))
    return BootPlan(
        zones=tuple(zones),
        segments=(Segment(entry, kernel), Segment(initrd_start, initrd), Segment(tree_start, tree)),
        vcpus=(boot, *others),
        pci=pci,
    )
