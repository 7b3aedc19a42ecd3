"""Opening devices for the domain that they are given to, reset: the VMM gets descriptors and has no path to any."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import KvmError, PartitionError
from vambrace.partition.devices import HostDevice
from vambrace.vfio import abi

DEV = Path("/dev/vfio")


@dataclass(frozen=True)
class Opened:
    """One device: its own descriptor, that of its IOMMU group, and that of the container in which the group is. Devices
    of one group have the latter two in common."""

    device: int
    group: int
    container: int


def hand_over(
    devices: Sequence[HostDevice], stack: ExitStack, dev: Path = DEV, *, unresettable: bool = False
) -> tuple[Opened, ...]:
    """Open ``devices`` and reset them; ``stack`` closes the descriptors.

    Raises ``PartitionError``: somebody else has one, or it cannot be reset (and that is not allowed).
    """
    groups: dict[str, tuple[int, int]] = {}
    opened = []
    try:
        for device in devices:
            if device.group not in groups:
                groups[device.group] = _open_group(device.group, stack, dev)
            group, container = groups[device.group]
            name = bytearray(device.address.encode() + b"\0")
            number = abi.call(group, abi.GROUP_GET_DEVICE_FD, name, f"open device {device.address}")
            stack.callback(os.close, number)
            opened.append(Opened(number, group, container))
        for device, one in zip(devices, opened, strict=True):
            _reset(device, one.device, [group for group, _ in groups.values()], unresettable)
    except KvmError as error:
        raise PartitionError(error.message, hint=error.hint) from error
    return tuple(opened)


def _open_group(name: str, stack: ExitStack, dev: Path) -> tuple[int, int]:
    try:
        container = os.open(dev / "vfio", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, container)
        group = os.open(dev / name, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, group)
    except OSError as error:
        raise PartitionError(
            f"IOMMU group {name} cannot be opened: {error.strerror}", hint="somebody else may have it: see /proc/*/fd"
        ) from error
    status = bytearray(struct.pack("<II", 8, 0))
    abi.call(group, abi.GROUP_GET_STATUS, status, f"look at IOMMU group {name}")
    if not struct.unpack_from("<II", status)[1] & abi.GROUP_VIABLE:
        raise PartitionError(
            f"IOMMU group {name} has a device with a driver of the host", hint="give all of its devices to vfio-pci"
        )
    abi.call(group, abi.GROUP_SET_CONTAINER, bytearray(struct.pack("<i", container)), f"use IOMMU group {name}")
    abi.call(container, abi.SET_IOMMU, abi.TYPE1V2, f"use the IOMMU of group {name}")
    return group, container


def _reset(device: HostDevice, descriptor: int, groups: list[int], unresettable: bool) -> None:
    """By itself if it can be, else with all that is on its bus, if that is this domain's."""
    info = bytearray(struct.pack("<IIIIII", 24, 0, 0, 0, 0, 0))
    abi.call(descriptor, abi.DEVICE_GET_INFO, info, f"look at device {device.address}")
    try:
        if struct.unpack_from("<II", info)[1] & abi.DEVICE_FLAG_RESET:
            abi.call(descriptor, abi.DEVICE_RESET, 0, f"reset device {device.address}")
            return
        packed = struct.pack(f"<III{len(groups)}i", 12 + 4 * len(groups), 0, len(groups), *groups)
        abi.call(descriptor, abi.DEVICE_HOT_RESET, packed, f"reset the bus of device {device.address}")
    except KvmError as error:
        if not unresettable:
            raise PartitionError(
                f"device {device.address} cannot be reset and may keep what its last owner has left: {error.message}",
                hint="give the domain all that is on its bus, or set allow_unresettable_devices",
            ) from error
