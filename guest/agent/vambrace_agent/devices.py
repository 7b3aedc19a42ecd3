"""PCI devices: found in the order of the configuration, given to the applications that are to use them.

The kernel's own drivers have them by now, or will soon. An application gets the device files of a device that is its
own; a network card gets its address, and is for all, as the network is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from vambrace_agent import AgentError, network
from vambrace_agent.settings import Application, Device

BUS = "/sys/bus/pci/devices"
DEV = "/dev"
SECONDS = 60.0
#: Subsystems whose device files are for who uses a device, not for who manages it.
_FOR_USE = ("block", "drm", "accel")


def hand_out(
    devices: Sequence[Device],
    applications: Sequence[Application],
    *,
    bus: str = BUS,
    dev: str = DEV,
    ip: Callable[..., None] | None = None,
    seconds: float = SECONDS,
) -> None:
    """Raises ``AgentError``: a device is not there, or its driver has not made anything of it in time."""
    ip = ip or network.run
    deadline = time.monotonic() + seconds
    addresses = find(devices, bus)
    owners = {application.name: application.uid for application in applications}
    for device, address in zip(devices, addresses, strict=True):
        folder = f"{bus}/{address}"
        if device.address:
            card = _await(lambda folder=folder: _cards(folder), deadline, device)[0]  # type: ignore[misc]
            ip("address", "add", device.address, "dev", card)
            ip("link", "set", card, "up")
        if device.application:
            for name in _await(lambda folder=folder: files(folder), deadline, device):  # type: ignore[misc]
                _give(f"{dev}/{name}", owners[device.application])


def find(devices: Sequence[Device], bus: str = BUS) -> list[str]:
    """The address of each of ``devices``: among those of a kind, the machine has them in the configuration's order."""
    present = sorted(os.listdir(bus)) if os.path.isdir(bus) else []
    left = {address: _describe(f"{bus}/{address}") for address in present}
    found = []
    for device in devices:
        fitting = [address for address, (code, identity) in left.items() if device.fits(code, identity)]
        if not fitting:
            raise AgentError(f"there is no device {device.name}")
        found.append(fitting[0])
        del left[fitting[0]]
    return found


def files(folder: str) -> list[str]:
    """Device files, below /dev, of a device and of its parts."""
    found = []
    for where, _, names in os.walk(folder):
        if "dev" in names and os.path.basename(os.path.realpath(f"{where}/subsystem")) in _FOR_USE:
            found.append(os.path.basename(where))
    return sorted(found)


def _cards(folder: str) -> list[str]:
    found = []
    for where, folders, _ in os.walk(folder):
        if os.path.basename(where) == "net":
            found += folders
    return sorted(found)


def _describe(folder: str) -> tuple[str, str]:
    """Class code, and vendor:device."""
    code, vendor, device = (_read(f"{folder}/{name}") for name in ("class", "vendor", "device"))
    return code, f"{vendor}:{device}"


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()[2:]


def _await(look: Callable[[], list[str]], deadline: float, device: Device) -> list[str]:
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AgentError(f"no driver has made anything of device {device.name}")
        time.sleep(0.05)
    return found


def _give(path: str, uid: int) -> None:
    try:
        os.chown(path, uid, uid)
        os.chmod(path, 0o600)
    except OSError as error:
        raise AgentError(f"{path} cannot be given to its application: {error.strerror}") from None
