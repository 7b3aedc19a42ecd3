"""Which PCI devices a host gives to domains, from what sysfs says, and who gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import pci_tree
from fakes.pci_tree import GPU, NETWORK, NVME, PORT, SOUND

from vambrace.config import DEVICE_KINDS
from vambrace.errors import CapacityError, PartitionError
from vambrace.partition.devices import DEVICES, Devices, claim
from vambrace.partition.ledger import Ledger, Request

DISK, CARD = "0000:01:00.0", "0000:02:00.0"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A disk and a network card, each below a port of its own, and a card that nobody may have."""
    pci_tree.add(tmp_path, "0000:00:01.0", code=PORT, group=1, driver="pcieport")
    pci_tree.add(tmp_path, DISK, group=1)
    pci_tree.add(tmp_path, CARD, code=NETWORK, group=2, identity="8086:10d3")
    pci_tree.add(tmp_path, "0000:03:00.0", code=NETWORK, group=3, identity="8086:1521", driver="igb")
    return tmp_path


def find(machine: Path, *allowed: str, unresettable: bool = False) -> Devices:
    return Devices(allowed, DEVICE_KINDS, machine, unresettable=unresettable)


def test_only_what_the_settings_name_is_given(machine: Path) -> None:
    devices = find(machine, DISK, "8086:10d3")
    assert [device.item for device in devices.devices] == [f"{DISK} nvme", f"{CARD} network"]
    assert devices.kind().groups == ((f"{DISK} nvme",), (f"{CARD} network",))
    assert not devices.left
    assert not find(machine).devices


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"code": PORT}, "it is a bridge"),
        ({"group": None}, "no IOMMU"),
        ({"resets": ""}, "cannot be reset"),
        ({"group": 3}, "in one IOMMU group with 0000:03:00.0"),
    ],
)
def test_what_cannot_be_given_is_left_with_the_reason(machine: Path, change: dict[str, object], why: str) -> None:
    pci_tree.add(machine, "0000:04:00.0", **{"group": 4, **change})  # type: ignore[arg-type]
    # Something else on its bus, which is another domain's.
    pci_tree.add(machine, "0000:04:00.1", code=SOUND, group=5)
    devices = find(machine, DISK, "0000:04:00.0")
    assert [device.address for device in devices.devices] == [DISK]
    assert why in devices.left[0].why


def test_an_operator_may_give_what_cannot_be_reset(machine: Path) -> None:
    pci_tree.add(machine, "0000:04:00.0", group=4, resets="")
    pci_tree.add(machine, "0000:04:00.1", group=5)
    assert [d.address for d in find(machine, "0000:04:00.0", unresettable=True).devices] == ["0000:04:00.0"]


def test_a_graphics_card_and_its_sound_are_one_group_and_are_reset_together(machine: Path) -> None:
    pci_tree.add(machine, "0000:04:00.0", code=GPU, group=4, resets="")
    pci_tree.add(machine, "0000:04:00.1", code=SOUND, group=4, resets="")
    devices = find(machine, "0000:04:00.0", "0000:04:00.1")
    assert devices.kind().groups == (("0000:04:00.0 gpu", "0000:04:00.1 class 040300"),)
    assert not find(machine, "0000:04:00.0").devices, "the sound stays with the host"


def test_each_wanted_kind_gets_a_free_device_of_it(machine: Path) -> None:
    pci_tree.add(machine, "0000:04:00.0", group=4, identity="144d:a80a")
    devices = find(machine, DISK, CARD, "0000:04:00.0")
    free = devices.kind().items
    assert devices.pick(["nvme", "network"], free) == (f"{DISK} nvme", f"{CARD} network")
    # Who names one gets it, whatever stands before.
    assert devices.pick(["nvme", "1b36:0010"], free) == ("0000:04:00.0 nvme", f"{DISK} nvme")
    assert devices.pick(["nvme"], free[1:]) == ("0000:04:00.0 nvme",)
    assert [device.address for device in devices.of([f"{CARD} network"])] == [CARD]


def test_a_refusal_says_what_is_free_and_who_has_the_rest(machine: Path) -> None:
    devices = find(machine, DISK, CARD)
    ledger = Ledger(1 << 30, [devices.kind()])

    def ask(label: str, *kinds: str) -> None:
        named = {DEVICES: devices.pick(kinds, ledger.free(DEVICES))}
        ledger.reserve(label, label, Request(0, {}, named, {DEVICES: ", ".join(kinds)}))

    ask("first", "nvme")
    with pytest.raises(CapacityError) as refusal:
        ask("second", "network", "nvme")
    assert refusal.value.message == (
        f"second cannot be given network, nvme (free: 1 of 2 devices: {CARD} network; first holds {DISK} nvme)"
    )
    with pytest.raises(CapacityError, match="second cannot be given gpu "):
        ask("second", "gpu")
    assert ledger.free(DEVICES) == (f"{CARD} network",)
    ledger.release("first")
    ask("second", "network", "nvme")
    assert not ledger.free(DEVICES)


def test_devices_are_taken_from_their_drivers(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine / "bus/pci/devices"
    pci_tree.bind(folder / DISK, "nvme")
    pci_tree.bind(folder / CARD, "")
    real = Path.write_text

    def kernel(path: Path, text: str, *arguments: object) -> int:
        done = real(path, text)
        if path.name == "unbind":
            pci_tree.bind(folder / text, "")
        elif path.name == "drivers_probe":
            pci_tree.bind(folder / text, (folder / text / "driver_override").read_text())
        return done

    assert [left.why for left in find(machine, DISK).left] == ["the driver vfio-pci does not take it"]
    monkeypatch.setattr(Path, "write_text", kernel)
    for _ in range(2):
        claim([DISK, "8086:10d3", "0000:00:01.0"], machine)
        drivers = {path.name: path.joinpath("driver").readlink().name for path in folder.iterdir()}
        assert drivers == {
            DISK: "vfio-pci",
            CARD: "vfio-pci",
            "0000:00:01.0": "pcieport",
            "0000:03:00.0": "igb",
        }
    assert find(machine, DISK, CARD).faults() == []


def test_what_root_may_not_write_is_an_error(machine: Path) -> None:
    pci_tree.bind(machine / "bus/pci/devices" / DISK, "nvme")
    (machine / "bus/pci/drivers_probe").unlink()
    (machine / "bus/pci/drivers_probe").mkdir()
    with pytest.raises(PartitionError, match="cannot be taken from its driver"):
        claim([DISK], machine)


def test_what_changes_behind_our_back_is_found(machine: Path) -> None:
    devices = find(machine, DISK, CARD)
    assert devices.faults() == []
    pci_tree.bind(machine / "bus/pci/devices" / DISK, "nvme")
    (machine / "bus/pci/devices" / CARD / "iommu_group").unlink()
    (machine / "bus/pci/devices" / CARD / "iommu_group").symlink_to(machine / "kernel/iommu_groups/3")
    pci_tree.add(machine, "0000:01:00.1", code=NVME, group=1)
    assert devices.faults() == [
        f"device {DISK} is not with vfio-pci but with nvme",
        f"device {CARD} is in IOMMU group 3, it was in 2",
        "device 0000:01:00.1 is in IOMMU group 1, which domains are given",
    ]
