"""A Normal VM: somebody's system as it is, or a stock one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vambrace.cache import DEMANDS, CacheShare
from vambrace.checks import check_name
from vambrace.classes import DomainClass
from vambrace.config import MAX_VCPUS, MIN_SYSTEM_MEMORY, Device, check_networks
from vambrace.errors import ConfigError
from vambrace.image.manifest.devices import read_hardware
from vambrace.image.manifest.lines import Mapping
from vambrace.image.manifest.zones import read_memory

MEMORY: Final = 512 << 20
CMDLINE: Final = "root=/dev/vda rw console=hvc0 quiet"


@dataclass(frozen=True)
class NormalManifest:
    """A checked manifest of a Normal VM. Either there is a ``kernel``, with ``initrd`` and ``disks``, or all three are
    a stock Debian system's, with the contents of the folder ``files`` over it."""

    path: Path
    kind: DomainClass
    name: str
    vcpus: int
    memory: int
    cmdline: str
    kernel: Path | None
    initrd: Path | None
    disks: tuple[Path, ...]
    files: Path | None
    cache: CacheShare | None = None
    networks: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()


def read_normal(path: Path, top: Mapping, kind: DomainClass) -> NormalManifest:
    """The manifest of a class whose system is its own business. Raises ``ConfigError``."""
    folder = path.parent
    name = top.name(str(kind))
    vcpus = top.number("vcpus", 1, MAX_VCPUS, 1)
    memory = read_memory(top, MEMORY, MIN_SYSTEM_MEMORY, str(kind))
    cmdline = top.string("cmdline", CMDLINE)
    kernel = initrd = files = None
    disks: tuple[Path, ...] = ()
    if "debian" in top:
        system = top.map("debian")
        assert system is not None
        with system.at("files"):
            files = _existing(folder, system.string("files")) if "files" in system else None
            if files is not None and not files.is_dir():
                raise ConfigError(f"{files} is not a folder", hint="its contents are put over the system's")
        system.done()
    else:
        with top.at("kernel"):
            kernel = _existing(folder, top.string("kernel"))
        with top.at("initrd"):
            initrd = _existing(folder, top.string("initrd"))
        with top.at("disks"):
            disks = tuple(_existing(folder, disk) for disk in top.strings("disks", required=True))
            for disk in disks:
                check_name(disk.stem, f"disk {disk}")
    cache = top.choice_and_number("cache", CacheShare, ("demand", DEMANDS), "percent")
    with top.at("networks"):
        networks = top.strings("networks")
        check_networks(networks)
    devices = tuple(_device(item) for item in top.maps("devices", required=False))
    top.done()
    return NormalManifest(
        path, kind, name, vcpus, memory, cmdline, kernel, initrd, disks, files, cache, networks, devices
    )


def _device(item: Mapping) -> Device:
    """What becomes of it is the system's own business."""
    hardware = read_hardware(item, [])
    if hardware.application or hardware.address:
        raise ConfigError(f"device {hardware.device.name}: only name and kind", hint="the system does the rest")
    return hardware.device


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="paths are relative to the manifest's folder")
    return path
