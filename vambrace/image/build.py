"""From a manifest to a bundle: the same inputs give the same bits."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vambrace.canonical import canonical
from vambrace.checks import check_unique
from vambrace.config import DEVICE_KINDS, SYSTEM_DISK, VM, Disk, DomainConfig
from vambrace.debian.erofs import BLOCK, VerityDisk, make_erofs
from vambrace.errors import BuildError, ConfigError, NoSpace
from vambrace.image import python
from vambrace.image.base import INIT, RuntimeBase
from vambrace.image.bundle import Bundle, check_output, write_bundle
from vambrace.image.containers.program import settle
from vambrace.image.encrypted import encrypt_disk, obtain_key
from vambrace.image.manifest import Hardware, Manifest, Program, read_manifest
from vambrace.image.programs import check_program
from vambrace.image.systems.system import build_system
from vambrace.image.systems.units import check_units
from vambrace.machine.plan import plan_boot
from vambrace.storage import SCRATCH, Storage

SETTINGS = "vambrace.json"  # read by the agent as /app/vambrace.json
FILES = "files-{}"  # the disk with an application's files, where they are encrypted
_FIRST_IMAGE = ord("c")  # behind base and apps


def build_bundle(
    manifest: Manifest | Path,
    out_path: Path,
    base: RuntimeBase,
    environments: Mapping[str, Path] = MappingProxyType({}),
) -> Bundle:
    """Build the application image that ``manifest``, or that at this path, describes on ``base`` into ``out_path``;
    ``environments`` are virtual environments of applications in Python, by name (``prepare``).

    Raises ``ConfigError`` for a wrong manifest, ``ImageError`` and ``BuildError`` (``ToolMissing``, ``NoSpace``).
    """
    if isinstance(manifest, Path):
        manifest = read_attested_manifest(manifest)
    if any(program.container for program in manifest.programs) and not base.containers:
        raise BuildError("this base runs no containers", hint="see vambrace.image.prepare")
    if manifest.vm and not base.systems:
        raise BuildError("this base runs no system of a disk", hint="see vambrace.image.prepare")
    out_path = Path(out_path)
    check_output(out_path)
    # Beside the result: it is as large, and must be on a disk that can hold it.
    try:
        work = Path(tempfile.mkdtemp(prefix=".vambrace-", dir=out_path.parent))
    except OSError as error:
        raise BuildError(f"{out_path.parent}: {error.strerror}", hint="choose another output") from None
    try:
        tree = work / "tree"
        tree.mkdir()
        programs, images = settle(manifest.programs, work, manifest.storage)
        manifest = dataclasses.replace(manifest, programs=programs)
        disks = {name: image.verity for name, image in images.items()}
        paths = {name: image.disk for name, image in images.items()}
        if manifest.vm:
            system = build_system(manifest.vm.disk, manifest.vm.partition, work)
            with system.path.open("rb") as disk:
                check_units(disk, system.filesystem, [program.application for program in programs])
            manifest = dataclasses.replace(manifest, vm=dataclasses.replace(manifest.vm, filesystem=system.filesystem))
            disks[SYSTEM_DISK], paths[SYSTEM_DISK] = system.verity, system.path
        for number, program in enumerate(manifest.programs):
            if program.container or manifest.vm:
                continue
            name = program.zone.name
            # What is encrypted is on a disk of its own, and mounted at an empty folder.
            target = work / FILES.format(number) if program.key else tree / name
            _stage(program, target)
            if program.requirements is not None:
                shutil.copytree(environments[name], target / python.FOLDER, symlinks=True)
            check_program(program.application, base.tree, target)
            if program.key:
                (tree / name).mkdir()
                (tree / name).chmod(0o755)
                paths[target.name] = work / f"{target.name}.erofs"
                disks[target.name] = make_erofs(target, paths[target.name])
        for name, resource in encrypted_disks(manifest).items():
            disks[name] = encrypt_disk(paths[name], disks[name], obtain_key(key_file(out_path, resource)))
        settings = tree / SETTINGS
        settings.write_bytes(canonical(agent_settings(manifest, disks)))
        settings.chmod(0o600)
        tree.chmod(0o755)
        apps = work / "apps.erofs"
        verity = make_erofs(tree, apps)
        config = make_config(manifest, {"base": base.disk_info, "apps": verity, **disks})
        # Whoever launches this would get the same refusal, but later.
        plan_boot(config, base.kernel.read_bytes(), base.initrd.read_bytes())
        files = [base.disk, apps, *(paths[name] for name in disks)]
        return write_bundle(out_path, config, base.kernel, base.initrd, files)
    except (OSError, NoSpace) as error:
        if isinstance(error, NoSpace) or error.errno == errno.ENOSPC:
            raise NoSpace(str(out_path.parent), "the image", hint="free some, or choose another --output") from error
        where = error.filename or out_path
        raise BuildError(
            f"the image cannot be built: {where}: {error.strerror}", hint="look at this file and its permissions"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_attested_manifest(path: Path) -> Manifest:
    """The manifest at ``path``, of a class that has applications. Raises ``ConfigError``."""
    manifest = read_manifest(path)
    if not isinstance(manifest, Manifest):
        raise ConfigError(f"{path}: a {manifest.kind} runs a system, no applications", hint="see build_normal")
    return manifest


def make_config(manifest: Manifest, disks: dict[str, VerityDisk]) -> DomainConfig:
    """The measured configuration for ``manifest`` on these disks: base, apps, the images of containers, and files that
    are encrypted."""
    keys = encrypted_disks(manifest)
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
        *(["vambrace.storage"] if manifest.storage or keys else []),
        # Drivers of devices wait for the IOMMU's, however long that takes: without it nothing is mapped for them.
        # And one way leads to a disk.
        *(["vambrace.devices", "deferred_probe_timeout=-1", "nvme_core.multipath=N"] if manifest.devices else []),
        f"vambrace.init={INIT}",
    ]
    return DomainConfig(
        kind=manifest.kind,
        name=manifest.name,
        cmdline=" ".join(words),
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
    keys = encrypted_disks(manifest)
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
        settings["images"] = {
            name: {
                "device": f"/dev/vd{chr(_FIRST_IMAGE + number)}",
                "blocks": verity.data_size // BLOCK,
                "root": verity.verity_root,
                "salt": verity.verity_salt,
                **({"key": keys[name], "size": verity.size} if name in keys else {}),
            }
            for number, (name, verity) in enumerate(images.items())
        }
    if manifest.vm:
        memory = sum(zone.memory for zone in (manifest.system, *(program.zone for program in manifest.programs)))
        settings["system"] = {
            "disk": SYSTEM_DISK,
            "filesystem": manifest.vm.filesystem,
            "writable": memory // 2,
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


def key_file(bundle: Path, resource: str) -> Path:
    """Where the key is that a disk of ``bundle`` was encrypted with, and that the broker calls ``resource``."""
    return bundle.with_name(f"{bundle.name}.{resource.replace('/', '.')}.key")


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


def _stage(program: Program, target: Path) -> None:
    """Copy the application's files to ``target``: modes normal, no set-id bits, no attributes."""
    target.mkdir()
    target.chmod(0o755)
    # Environments of the building machine's Python are of no use there, where a program has one of its own.
    left_out = {"__pycache__", *([python.FOLDER] if program.requirements else [])}
    for number, source in enumerate(program.files):
        _copy(source, target if program.merge and not number else target / source.name, source, left_out)
    size = sum(path.lstat().st_size for path in target.rglob("*") if path.is_file())
    if size > program.zone.memory:
        raise ConfigError(
            f"application {program.zone.name}: its files take {-(-size >> 20)} MiB, more than its memory",
            hint=f"give it more memory than {program.zone.memory >> 20} MiB",
        )


def _copy(source: Path, target: Path, top: Path, left_out: set[str]) -> None:
    mode = source.lstat().st_mode
    if stat.S_ISLNK(mode) and source != top:
        _copy_link(source, target, top)
    elif source.is_dir():
        target.mkdir(exist_ok=True)
        target.chmod(0o755)
        for entry in sorted(source.iterdir()):
            # Caches of the building machine's Python: of no use there, and different at each build.
            if entry.name not in left_out:
                _copy(entry, target / entry.name, top, left_out)
    elif source.is_file():
        if not os.access(source, os.R_OK):
            raise ConfigError(f"{source} cannot be read", hint="change its permissions")
        shutil.copyfile(source, target)
        target.chmod(0o755 if mode & 0o111 else 0o644)
    else:
        raise ConfigError(f"{source} is a device, socket or pipe", hint="an image holds files and folders only")


def _copy_link(source: Path, target: Path, top: Path) -> None:
    link = source.readlink()
    end = Path(os.path.normpath(source.parent / link))
    inside = not link.is_absolute() and end.is_relative_to(os.path.normpath(top)) and top.is_dir()
    if not inside or not source.resolve().is_relative_to(top.resolve()):
        raise ConfigError(f"{source} is a link that leads out of {top}", hint="put the file itself there")
    target.symlink_to(link)
