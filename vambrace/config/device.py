"""PCI devices and network cards, which a domain has for itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from vambrace.canonical import Object
from vambrace.checks import check_name, check_unique
from vambrace.config.zone import Zone
from vambrace.errors import ConfigError
from vambrace.record import Record

MAX_NETWORKS: Final = 4
MAX_PCI_DEVICES: Final = 16

#: What a domain may ask for, and the beginning of the PCI class code of such devices.
DEVICE_KINDS: Final[Mapping[str, str]] = {
    "nvme": "010802",
    "network": "0200",
    "gpu": "03",
    "accelerator": "12",
}

_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")


class Device(Record):
    """A PCI device that this domain has for itself: of a ``kind`` of ``DEVICE_KINDS``, or one with a vendor's and
    device's number (``1b36:0010``). Which one the host gives is its business."""

    name: str
    kind: str

    def __post_init__(self) -> None:
        check_name(self.name, "device")
        if not isinstance(self.kind, str) or not (self.kind in DEVICE_KINDS or _PCI_ID.fullmatch(self.kind)):
            raise ConfigError(
                f"device {self.name}: {str(self.kind)[:40]!r} is no kind of device",
                hint=f"one of {', '.join(DEVICE_KINDS)}, or vendor:device in hexadecimal",
            )

    @classmethod
    def read(cls, item: Object) -> Device:
        return cls(item.string("name"), item.string("kind"))


def check_devices(devices: Sequence[Device], zones: Sequence[Zone]) -> None:
    if len(devices) > MAX_PCI_DEVICES:
        raise ConfigError(f"{len(devices)} devices", hint=f"at most {MAX_PCI_DEVICES}")
    check_unique([device.name for device in devices], "device")
    if devices and not zones[0].pins:
        raise ConfigError(
            "devices: the system may pin nothing for them", hint="give the system pins: what its drivers need"
        )
    if not devices and any(zone.pins for zone in zones):
        raise ConfigError("pins: there are no devices", hint="leave them out")


def check_networks(names: Sequence[str]) -> None:
    """One card for each: with two at one network a guest would not know which is which."""
    if len(names) > MAX_NETWORKS:
        raise ConfigError(f"{len(names)} networks", hint=f"at most {MAX_NETWORKS}")
    for name in names:
        check_name(name, "network")
    check_unique(names, "network")
