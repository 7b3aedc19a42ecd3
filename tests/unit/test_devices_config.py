"""Devices in a manifest, in the measured configuration, in the device tree, and for the agent."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import fdt
import pytest
from config_factory import MIB, make_kernel, make_realm, owner

from vambrace import pager
from vambrace.canonical import canonical
from vambrace.config import (
    DEVICE_KINDS,
    MINIMUM_WINDOW,
    PAGE,
    PIN_HEADROOM,
    Device,
    DomainConfig,
    window_bytes,
)
from vambrace.errors import ConfigError
from vambrace.image.configuration import agent_settings
from vambrace.image.manifest import Manifest, NormalManifest, read_manifest
from vambrace.machine import layout, plan_boot

DISK, CARD = Device("disk", "nvme"), Device("card", "1af4:1041")


def with_devices(*devices: Device, pins: int = 4 * MIB) -> DomainConfig:
    config = make_realm()
    zones = (config.zones[0].replace(pins=pins), *config.zones[1:])
    changed: DomainConfig = config.replace(devices=devices, zones=zones)
    return changed


def test_a_configuration_without_devices_is_what_it_was() -> None:
    """Measurements of images that name none stay what they were; no other spelling of none is read."""
    config = make_realm()
    assert b"devices" not in config.encode()
    assert b"pins" not in config.encode()
    for change in ({"devices": []}, {"zones": [zone | {"pins": 0} for zone in config.as_object()["zones"]]}):
        with pytest.raises(ConfigError):
            DomainConfig.parse(canonical(config.as_object() | change))


def test_devices_and_pins_are_measured() -> None:
    config = with_devices(DISK, CARD)
    assert DomainConfig.parse(config.encode()) == config
    variants = [config, with_devices(DISK), with_devices(CARD, DISK), with_devices(DISK, CARD, pins=8 * MIB)]
    assert len({variant.encode() for variant in variants}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": [{"name": "disk", "kind": "floppy"}]}, "no kind of device"),
        ({"devices": [{"name": "disk", "kind": "1B36:0010"}]}, "no kind of device"),
        ({"devices": [{"name": "Disk", "kind": "nvme"}]}, "not a valid name"),
        ({"devices": [DISK.as_dict(), DISK.as_dict()]}, "appears twice"),
        ({"devices": [DISK.replace(name=f"d{n}").as_dict() for n in range(17)]}, "17 devices"),
        ({"pins": 0}, "may pin nothing"),
        ({"pins": 1000}, "multiple of 4096"),
        ({"pins": -PAGE}, "pins is -4096"),
        ({"pins": 64 * MIB}, "more than 80 % leave in plaintext"),
        ({"devices": None}, "there are no devices"),
    ],
)
def test_each_mistake(change: dict[str, Any], message: str) -> None:
    top = with_devices(DISK).as_object()
    if "pins" in change:
        top["zones"][0]["pins"] = change["pins"]
    elif change["devices"] is None:
        del top["devices"]
    else:
        top |= change
    with pytest.raises(ConfigError, match=message):
        DomainConfig.parse(canonical(top))


MANIFEST = """\
name: patients
owner: owner.pem
system: {memory: 128M, percent: 50}
applications:
  - {name: analysis, command: [python3, main.py], memory: 32M, percent: 80, pins: 1M}
  - {name: report, command: [python3, main.py], memory: 32M, percent: 0}
devices:
  - {name: disk, kind: nvme, application: analysis}
  - {name: card, kind: "1af4:1041", address: 10.0.3.15/24}
"""


def read(folder: Path, text: str = MANIFEST) -> Manifest:
    (folder / "owner.pem").write_text(owner()[0])
    (folder / "manifest.yaml").write_text(text)
    manifest = read_manifest(folder / "manifest.yaml")
    assert isinstance(manifest, Manifest)
    return manifest


def test_a_manifest_names_devices_and_what_they_may_reach(tmp_path: Path) -> None:
    manifest = read(tmp_path)
    assert [hardware.device for hardware in manifest.devices] == [DISK, CARD]
    assert [(h.application, h.address) for h in manifest.devices] == [("analysis", ""), ("", "10.0.3.15/24")]
    # Where it says nothing, a quarter of what may be plaintext.
    assert manifest.system.pins == 16 * MIB
    assert [program.zone.pins for program in manifest.programs] == [MIB, 8 * MIB]
    assert agent_settings(manifest)["devices"] == [
        {"name": "disk", "code": "010802", "identity": "", "application": "analysis", "address": ""},
        {"name": "card", "code": "", "identity": "1af4:1041", "application": "", "address": "10.0.3.15/24"},
    ]


def test_a_manifest_without_devices_pins_nothing(tmp_path: Path) -> None:
    manifest = read(tmp_path, MANIFEST[: MANIFEST.index("devices:")].replace(", pins: 1M", ""))
    assert not manifest.devices
    assert not manifest.system.pins
    assert "devices" not in agent_settings(manifest)


@pytest.mark.parametrize(
    ("old", "new", "message", "line"),
    [
        ("kind: nvme", "kind: disk", "no kind of device", 8),
        ("application: analysis", "application: other", "'other' is not known", 8),
        ("10.0.3.15/24", "10.0.3.999", "no address", 9),
        ("pins: 1M", "pins: 30M", "more than 80 %", 5),
        ("pins: 1M", "pins: few", "no size of memory", 5),
        ("name: card", "name: disk", "appears twice", 7),
        ("kind: nvme", "colour: blue, kind: nvme", "unknown key 'colour'", 8),
    ],
)
def test_each_mistake_in_a_manifest(tmp_path: Path, old: str, new: str, message: str, line: int) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, MANIFEST.replace(old, new))
    assert error.value.line == line


NORMAL = "name: debian\nclass: normal\nmemory: 128M\ndebian: {}\ndevices: [{name: disk, kind: nvme}]\n"


def test_a_normal_vm_names_devices_too(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text(NORMAL)
    manifest = read_manifest(tmp_path / "manifest.yaml")
    assert isinstance(manifest, NormalManifest)
    assert manifest.devices == (DISK,)
    (tmp_path / "manifest.yaml").write_text(NORMAL.replace("nvme", "nvme, address: 10.0.3.15/24"))
    with pytest.raises(ConfigError, match="only name and kind"):
        read_manifest(tmp_path / "manifest.yaml")


def tree_of(config: DomainConfig) -> fdt.FDT:
    return fdt.parse_dtb(bytes(plan_boot(config, make_kernel(), b"initrd").segments[2].data))


def test_the_tree_of_a_domain_without_devices_has_no_bus() -> None:
    names = {node.name for node in tree_of(make_realm()).root.nodes}
    assert not [name for name in names if name.startswith("pcie")]
    config = make_realm()
    assert not plan_boot(config, make_kernel(), b"initrd").pci


def test_the_bus_its_iommu_and_its_interrupts_know_each_other() -> None:
    config = with_devices(DISK)
    tree = tree_of(config)
    bus = tree.get_node(f"pcie@{layout.PCI_CONFIG:x}")
    slots = layout.device_slots(config.disks, pci=True)
    iommu = tree.get_node(f"virtio_mmio@{layout.device_address(slots.index('iommu')):x}")
    its = tree.get_node(f"interrupt-controller@{layout.GIC_DISTRIBUTOR:x}/msi-controller@{layout.ITS:x}")
    assert iommu.get_property("#iommu-cells").value == 1
    assert list(bus.get_property("iommu-map").data) == [0, iommu.get_property("phandle").value, 0, 256]
    assert list(bus.get_property("msi-map").data) == [0, its.get_property("phandle").value, 0, 256]


def test_regions_lie_where_nothing_else_does() -> None:
    config = with_devices(DISK)
    plan = plan_boot(config, make_kernel(), b"initrd")
    bus = tree_of(config).get_node(f"pcie@{layout.PCI_CONFIG:x}")
    ranges = b"".join(struct.pack(">I", cell) for cell in bus.get_property("ranges").data)
    low, high = struct.iter_unpack(">IQQQ", ranges)
    assert low[1:] == (layout.PCI_LOW, layout.PCI_LOW, layout.PCI_LOW_SIZE)
    assert low[2] + low[3] == layout.RAM
    assert high[2] >= plan.end
    assert high[2] % layout.PCI_HIGH_SIZE == 0
    assert high[2] + high[3] <= 1 << plan.address_bits
    devices_end = layout.device_address(layout.MAX_DEVICES)
    assert devices_end <= layout.PCI_CONFIG
    assert layout.PCI_CONFIG + layout.PCI_CONFIG_SIZE <= layout.PCI_LOW
    assert layout.GIC_DISTRIBUTOR + layout.GIC_DISTRIBUTOR_SIZE <= layout.ITS
    assert layout.ITS + layout.ITS_SIZE <= layout.GIC_REDISTRIBUTORS


def test_kinds_are_told_apart_by_their_class() -> None:
    codes = sorted(DEVICE_KINDS.values())
    assert not [one for one, other in zip(codes, codes[1:], strict=False) if other.startswith(one)]


def test_the_window_has_the_bounds_that_pins_are_checked_by() -> None:
    assert (pager.MINIMUM_WINDOW, pager.PIN_HEADROOM) == (MINIMUM_WINDOW, PIN_HEADROOM)
    assert window_bytes(128 * MIB, 50) == pager.window_pages(128 * MIB // PAGE, 50) * PAGE
