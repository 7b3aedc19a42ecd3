"""What a manifest comes to: the measured configuration, and the settings that the agent reads."""

from __future__ import annotations

import dataclasses
from typing import Any

from vambrace.checks import check_unique
from vambrace.config import DEVICE_KINDS, SYSTEM_DISK, VM, Disk, DomainConfig
from vambrace.debian.erofs import BLOCK, VerityDisk
from vambrace.errors import ConfigError
from vambrace.image.base import INIT
from vambrace.image.manifest import Hardware, Manifest
from vambrace.storage import SCRATCH, Storage

SETTINGS = "vambrace.json"  # read by the agent as /app/vambrace.json
FILES = "files-{}"  # the disk with an application's files, where they are encrypted
_FIRST_IMAGE = ord("c")  # behind base and apps


def make_config(manifest: Manifest, disks: dict[str, VerityDisk]) -> DomainConfig:
    """The measured configuration for ``manifest`` on these disks: base, apps, the images of containers, and files that
    are encrypted."""
    keys = encrypted_disks(manifest)
    return DomainConfig(
        kind=manifest.kind,
        name=manifest.name,
        cmdline=_command_line(manifest, disks, storage=bool(manifest.storage or keys)),
        owner=manifest.owner,
        channel=manifest.channel,
        zones=(manifest.system, *(program.zone for program in manifest.programs)),
        applications=tuple(program.application for program in manifest.programs),
        form=VM if manifest.vm else DomainConfig.form,
        disks=tuple(_disk(name, verity, keys.get(name, "")) for name, verity in disks.items()),
        debug=manifest.debug,
        hash=manifest.suite.hash,
        cipher=manifest.suite.cipher if manifest.kind.encrypted else DomainConfig.cipher,
        vcpus=manifest.vcpus,
        verdict_seconds=manifest.verdict_seconds,
        collect_seconds=manifest.collect_seconds,
        endpoints=manifest.endpoints,
        cache=manifest.cache,
        networks=tuple(network.name for network in manifest.networks),
        devices=tuple(hardware.device for hardware in manifest.devices),
        broker=manifest.broker,
        sealing=manifest.sealing,
        storage=manifest.storage,
    )


def agent_settings(manifest: Manifest, images: dict[str, VerityDisk] | None = None) -> dict[str, Any]:
    """What the agent reads: the configuration's part that is its business, covered by the disk's verity. ``images`` are
    the disks behind base and apps, in their order."""
    applications = []
    for number, program in enumerate(manifest.programs):
        own = {"files": FILES.format(number)} if program.key and not program.container else {}
        applications.append(program.application.as_object() | {"memory": program.zone.memory, **own})
    settings: dict[str, Any] = {
        "name": manifest.name,
        # The only certificate that the channel takes, and what the hashes of its challenges are called in Python.
        "owner": manifest.channel or manifest.owner,
        "digests": list(manifest.suite.digests),
        "hash": manifest.suite.hash,
        "collect_seconds": manifest.collect_seconds,
        "lasting": not manifest.kind.ends_itself,
        "applications": applications,
    }
    if images:
        settings["images"] = _image_settings(images, encrypted_disks(manifest))
    if manifest.vm:
        zones = (manifest.system, *(program.zone for program in manifest.programs))
        settings["system"] = {
            "disk": SYSTEM_DISK,
            "filesystem": manifest.vm.filesystem,
            "writable": sum(zone.memory for zone in zones) // 2,
        }
    if manifest.endpoints:
        # Not who the peer is: that is the monitor's to judge.
        settings["endpoints"] = [
            {"name": endpoint.name, "role": endpoint.role, "port": endpoint.port} for endpoint in manifest.endpoints
        ]
    if manifest.networks:
        settings["networks"] = [dataclasses.asdict(network) for network in manifest.networks]
    if manifest.devices:
        settings["devices"] = [_device_settings(hardware) for hardware in manifest.devices]
    if manifest.broker:
        settings["broker"] = manifest.broker.as_object()
    if manifest.sealing:
        settings["sealing"] = manifest.sealing.as_dict()
    if manifest.storage:
        settings["disks"] = _disk_settings(manifest.storage)
    return settings


def encrypted_disks(manifest: Manifest) -> dict[str, str]:
    """The broker's names for the keys of disks, by the names of these. ``manifest`` is settled. Raises
    ``ConfigError``."""
    found: dict[str, str] = {SYSTEM_DISK: manifest.vm.key} if manifest.vm else {}
    for number, program in enumerate(manifest.programs):
        container = program.application.container
        name = container.disk if container else FILES.format(number)
        if found.setdefault(name, program.key) != program.key:
            raise ConfigError(
                f"application {program.zone.name}: another container of this image has another key, or none",
                hint="encrypt it for one key, in all applications that are made of it",
            )
    found = {name: resource for name, resource in found.items() if resource}
    check_unique(list(found.values()), "key of a disk")  # alike blocks of two disks would look alike
    return found


def _command_line(manifest: Manifest, disks: dict[str, VerityDisk], *, storage: bool) -> str:
    """The kernel's; ``storage``: something is written to, or encrypted, on disks."""
    words = [
        "console=hvc0",
        "loglevel=7 vambrace.debug" if manifest.debug else "quiet loglevel=0",
        "panic=-1",
        "oops=panic",
        # Pages are encrypted one by one: a huge page or a migration would drag 512 through the window.
        *(("transparent_hugepage=never", "numa_balancing=disable") if manifest.kind.encrypted else ()),
        disks["base"].mount_word("/dev/vda", "/"),
        disks["apps"].mount_word("/dev/vdb", "/app"),
        *(["vambrace.network"] if manifest.networks else []),
        *(["vambrace.storage"] if storage else []),
        # Drivers of devices wait for the IOMMU's, however long that takes: without it nothing is mapped for them.
        # And one way leads to a disk.
        *(["vambrace.devices", "deferred_probe_timeout=-1", "nvme_core.multipath=N"] if manifest.devices else []),
        f"vambrace.init={INIT}",
    ]
    return " ".join(words)


def _image_settings(images: dict[str, VerityDisk], keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """How the agent opens each of ``images``, for which the broker has ``keys``."""
    found: dict[str, dict[str, Any]] = {}
    for number, (name, verity) in enumerate(images.items()):
        found[name] = {
            "device": f"/dev/vd{chr(_FIRST_IMAGE + number)}",
            "blocks": verity.data_size // BLOCK,
            "root": verity.verity_root,
            "salt": verity.verity_salt,
        }
        if name in keys:
            found[name] |= {"key": keys[name], "size": verity.size}
    return found


def _disk_settings(storage: Storage) -> list[dict[str, Any]]:
    """Of each disk to write to, in order: what it is for, and how the agent finds it."""
    scratch = [{"name": s.application, "mount": SCRATCH, "key": "", **s.as_object()} for s in storage.scratch]
    disks = [*scratch, *(volume.as_object() for volume in storage.volumes)]
    return [disk | {"serial": store.serial} for disk, store in zip(disks, storage.stores, strict=True)]


def _device_settings(hardware: Hardware) -> dict[str, str]:
    """How the agent finds a device, and what it does with it."""
    device = hardware.device
    return {
        "name": device.name,
        "code": DEVICE_KINDS.get(device.kind, ""),
        "identity": "" if device.kind in DEVICE_KINDS else device.kind,
        "application": hardware.application,
        "address": hardware.address,
    }


def _disk(name: str, verity: VerityDisk, key: str) -> Disk:
    return Disk(
        name=name,
        sha256=verity.sha256,
        size=verity.size,
        data_size=verity.data_size,
        verity_root=verity.verity_root,
        verity_salt=verity.verity_salt,
        key=key,
    )
