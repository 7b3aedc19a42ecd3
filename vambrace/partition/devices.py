"""The PCI devices of this machine that domains may have, and by which IOMMU groups they can be told apart (sysfs)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.partition.ledger import Item, Kind

SYSFS = Path("/sys")
DEVICES = "devices"
DRIVER = "vfio-pci"
#: What the settings may name: an address, or vendor:device.
PATTERN = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]|[0-9a-f]{4}:[0-9a-f]{4}")
_BRIDGE = "0604"


@dataclass(frozen=True)
class HostDevice:
    """One function. ``identity`` is vendor:device, ``code`` the class code (6 hexadecimal digits), ``kind`` what people
    ask for; ``driver`` and ``group`` are empty where there is none."""

    address: str
    identity: str
    code: str
    kind: str
    group: str
    driver: str
    resettable: bool

    @property
    def item(self) -> str:
        """Its name in the ledger."""
        return f"{self.address} {self.kind}"

    def is_a(self, kind: str) -> bool:
        """Whether it is what a configuration asks for: a kind, or vendor:device."""
        return kind in (self.kind, self.identity)


@dataclass(frozen=True)
class Left:
    """A device that the settings name and no domain gets, and why."""

    device: HostDevice
    why: str


def claim(allowed: Sequence[str], sysfs: Path = SYSFS) -> None:
    """Take what the settings name from the drivers that have it, and give it to vfio-pci: only then the kernel says of
    all of them in which IOMMU group they are. Raises ``PartitionError``."""
    for device in _scan(sysfs, {}):
        if not _is_named(device, allowed) or device.code.startswith(_BRIDGE) or device.driver == DRIVER:
            continue
        folder = sysfs / "bus/pci/devices" / device.address
        try:
            if device.driver:
                (folder / "driver/unbind").write_text(device.address)
            (folder / "driver_override").write_text(DRIVER)
            (sysfs / "bus/pci/drivers_probe").write_text(device.address)
        except OSError as error:
            raise PartitionError(
                f"device {device.address} cannot be taken from its driver: {error.strerror}",
                hint="run as root, or take it out of the settings' pci_devices",
            ) from error


class Devices:
    """As they are after ``claim`` (``allowed``). ``kinds`` are the kinds by the beginning of their class codes.

    ``groups`` are those that can be given, ``left`` what the settings name in vain. With ``unresettable``, devices that
    cannot be reset are given all the same: the next owner finds in them what the last one has left.
    """

    def __init__(
        self, allowed: Sequence[str], kinds: Mapping[str, str], sysfs: Path = SYSFS, *, unresettable: bool = False
    ) -> None:
        self._sysfs = sysfs
        self._kinds = kinds
        found = tuple(self._scan())
        named = [device for device in found if _is_named(device, allowed)]
        self.left: tuple[Left, ...] = ()
        groups: dict[str, list[HostDevice]] = {}
        for device in named:
            why = self._why_not(device, found, named, unresettable)
            if why:
                self.left = (*self.left, Left(device, why))
            else:
                groups.setdefault(device.group, []).append(device)
        # A group is given as a whole, or not at all.
        bad = {left.device.group for left in self.left}
        self.groups = {group: tuple(devices) for group, devices in groups.items() if group not in bad}

    @property
    def devices(self) -> tuple[HostDevice, ...]:
        """Those that can be given."""
        return tuple(device for devices in self.groups.values() for device in devices)

    def kind(self) -> Kind:
        """For the ledger."""
        return Kind(DEVICES, tuple(tuple(device.item for device in devices) for devices in self.groups.values()))

    def of(self, items: Iterable[Item]) -> tuple[HostDevice, ...]:
        """The devices that these items of the ledger are."""
        wanted = set(items)
        return tuple(device for device in self.devices if device.item in wanted)

    def pick(self, wanted: Sequence[str], free: Collection[Item]) -> tuple[Item, ...]:
        """An item for each of the kinds ``wanted``, in order: a free one if there is one. Where there is not: one that
        is not free, or that does not exist, so that the ledger refuses and says why."""
        chosen: dict[int, Item] = {}
        # Who names one device by its numbers comes before who takes any.
        order = sorted(range(len(wanted)), key=lambda index: ":" not in wanted[index])
        for index in order:
            fitting = [device.item for device in self.devices if device.is_a(wanted[index])]
            left = [item for item in fitting if item not in chosen.values()]
            best = [item for item in left if item in free] or left or [f"a device {wanted[index]}"]
            chosen[index] = best[0]
        return tuple(chosen[index] for index in range(len(wanted)))

    def faults(self) -> list[str]:
        """What is not as it was when devices were given: another driver, another group."""
        faults = []
        now = {device.address: device for device in self._scan()}
        for device in self.devices:
            present = now.get(device.address)
            if present is None:
                faults.append(f"device {device.address} is gone")
            elif present.group != device.group:
                faults.append(f"device {device.address} is in IOMMU group {present.group}, it was in {device.group}")
            elif present.driver != DRIVER:
                faults.append(f"device {device.address} is not with {DRIVER} but with {present.driver or 'no driver'}")
        for device in now.values():
            strange = device.group in self.groups and device.address not in {d.address for d in self.devices}
            if strange and not device.code.startswith(_BRIDGE):
                faults.append(f"device {device.address} is in IOMMU group {device.group}, which domains are given")
        return faults

    def _scan(self) -> Iterable[HostDevice]:
        return _scan(self._sysfs, self._kinds)

    def _why_not(
        self, device: HostDevice, found: Sequence[HostDevice], named: Sequence[HostDevice], unresettable: bool
    ) -> str:
        """Empty where nothing is against it."""
        if device.code.startswith(_BRIDGE):
            return "it is a bridge"
        if not device.group:
            return "no IOMMU is in front of it"
        if device.driver != DRIVER:
            return f"the driver {DRIVER} does not take it"
        for other in found:
            if other.group == device.group and other not in named and not other.code.startswith(_BRIDGE):
                return f"it is in one IOMMU group with {other.address}, which the settings do not name"
        if not unresettable and not self._can_reset(device, found):
            return "it cannot be reset between its owners"
        return ""

    def _can_reset(self, device: HostDevice, found: Sequence[HostDevice]) -> bool:
        """By itself, or with all that is on its bus, which then is its owner's too."""
        bus = device.address.rpartition(":")[0]
        others = [other for other in found if other.address.rpartition(":")[0] == bus]
        return device.resettable or all(other.group == device.group for other in others)


def _is_named(device: HostDevice, allowed: Sequence[str]) -> bool:
    return device.address in allowed or device.identity in allowed


def _scan(sysfs: Path, kinds: Mapping[str, str]) -> Iterable[HostDevice]:
    folder = sysfs / "bus/pci/devices"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        code = _number(path / "class", 6)
        yield HostDevice(
            address=path.name,
            identity=f"{_number(path / 'vendor', 4)}:{_number(path / 'device', 4)}",
            code=code,
            kind=next((name for name, start in kinds.items() if code.startswith(start)), f"class {code}"),
            group=_link(path / "iommu_group"),
            driver=_link(path / "driver"),
            resettable=bool(_text(path / "reset_method").strip()),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path, digits: int) -> str:
    """A hexadecimal number of sysfs, without 0x."""
    return _text(path).strip().removeprefix("0x").rjust(digits, "0")[:digits]


def _link(path: Path) -> str:
    """The name of what a link leads to, or nothing."""
    try:
        return path.readlink().name
    except OSError:
        return ""
