"""``vambrace image``: manifests to bundles, and what a bundle will measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vambrace.classes import REQUIRED
from vambrace.cli import registry
from vambrace.cli.output import Output, size, table
from vambrace.cli.parser import Commands
from vambrace.cli.single import add_single, wanted_manifest
from vambrace.client.progress import Progress

if TYPE_CHECKING:
    from vambrace.image import Bundle


def add(commands: Commands) -> None:
    group = commands.group("image", "secure images: bundles of kernel, initrd, disks and configuration")
    build = group.add(
        "build",
        "build the bundle of a manifest, or of one container, program or disk",
        _build,
        "vambrace image build patients.yaml -o patients.vambrace\n"
        "  vambrace image build --container nginx.tar --owner owner.pem --name web --publish 80",
    )
    build.add_argument("manifest", nargs="?")
    build.add_argument("-o", "--output", type=Path, help="the bundle (default: the manifest's name + .vambrace)")
    build.add_argument("--newer", action="store_true", help="take newer packages where the recorded are gone")
    add_single(build)
    sign = group.add(
        "sign",
        "sign what a bundle measures as, with the platform owner's key",
        _sign,
        "vambrace image sign vault.vambrace --key platform-owner/key.pem",
    )
    sign.add_argument("bundle", type=Path)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the platform owner's private key (PEM)")
    sign.add_argument("-o", "--output", type=Path, help="the signed bundle (default: in its place)")
    measure = group.add(
        "measure",
        "compute the launch measurement, offline",
        _measure,
        "vambrace image measure patients.vambrace",
    )
    inspect = group.add(
        "inspect",
        "check a bundle and show what is in it",
        _inspect,
        "vambrace image inspect patients.vambrace",
    )
    measure.add_argument("bundle", type=Path)
    inspect.add_argument("bundle", help="a bundle, or one in a registry: docker://REGISTRY/NAME:TAG")
    registry.registry_options(inspect)
    registry.add(group)


def build_image(
    manifest: Path, bundle: Path, progress: Progress, *, newer: bool = False, beside: Path | None = None
) -> Bundle:
    """Build ``manifest`` into ``bundle`` on the runtime base, which is built if the cache has it not; locks are put
    ``beside`` another manifest, if that is given."""
    import vambrace.debian
    from vambrace.debian.archive import Archive
    from vambrace.debian.cache import Cache
    from vambrace.image.build import build_bundle
    from vambrace.image.manifest import NormalManifest, read_manifest
    from vambrace.image.prepare import environments, manifest_base

    wanted = read_manifest(manifest)  # what is wrong with it is said before anything long
    cache = Cache()
    lock = Path(vambrace.debian.__file__).with_name("packages.lock")
    archive = Archive(cache.root / "archive", lock, newer=newer)
    if isinstance(wanted, NormalManifest):
        from vambrace.debian.system import stock_system
        from vambrace.image.normal import build_normal

        progress("preparing the Debian system")
        system = None if wanted.kernel else stock_system(archive, cache)
        progress("building the image")
        return build_normal(wanted, bundle, system)
    progress("preparing the runtime base")
    base = manifest_base(wanted, archive, cache, beside)
    found = environments(wanted, base, cache, beside, newer=newer)
    progress("building the image")
    return build_bundle(wanted, bundle, base, found)


def default_bundle(manifest: Path) -> Path:
    return Path(manifest.stem + ".vambrace")


def _build(options: argparse.Namespace, output: Output) -> int:
    with wanted_manifest(options) as (manifest, named):
        path = options.output or default_bundle(named)
        bundle = build_image(manifest, path, output.progress, newer=options.newer, beside=named)
    value: dict[str, Any] = {"bundle": str(path), "size": path.stat().st_size, "class": bundle.config.kind.name}
    lines = [f"{path}: {size(path.stat().st_size)}"]
    if bundle.config.kind.measured:
        output.progress("measuring")
        value["measurement"] = bundle.measurement().hex()
        lines.append(f"measurement: {value['measurement']}")
    keys, further = _keys_to_store(bundle)
    value |= {"keys": keys} if keys else {}
    lines += further
    if bundle.config.kind.signature == REQUIRED:
        lines.append(f"a {bundle.config.kind} starts only if the platform's owner has signed it: 'vambrace image sign'")
    output.result(value, lines)
    return 0


def _keys_to_store(bundle: Bundle) -> tuple[dict[str, str], list[str]]:
    """The files with the keys of encrypted disks, by the broker's names for them, and what is to be done with each."""
    from vambrace.image.build import key_file

    keys = {disk.key: str(key_file(bundle.path, disk.key)) for disk in bundle.config.disks if disk.key}
    advice = [f"vambrace secret put {name} --value {file} --bundle {bundle.path}" for name, file in keys.items()]
    return keys, [f"the broker needs the key of an encrypted disk: {command}" for command in advice]


def _sign(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.image import ImageStatement, load_key, sign_image
    from vambrace.errors import UsageError
    from vambrace.image import Bundle
    from vambrace.image.bundle import sign_bundle

    key = load_key(options.key)
    bundle = Bundle.open(options.bundle)
    config = bundle.config
    if not config.kind.measured:
        raise UsageError(f"a {config.kind} is not measured, so there is nothing to sign", hint="build another class")
    output.progress("measuring")
    measurement = bundle.measurement()
    signature = sign_image(key, ImageStatement.of(config.kind.name, config.hash, measurement, config.encode()))
    output.progress("writing")
    path = options.output or options.bundle
    sign_bundle(bundle, signature, path)
    output.result({"bundle": str(path), "measurement": measurement.hex()}, [f"{path}: {measurement.hex()} is signed"])
    return 0


def _measure(options: argparse.Namespace, output: Output) -> int:
    from vambrace.errors import UsageError
    from vambrace.image import Bundle

    bundle = Bundle.open(options.bundle)
    if not bundle.config.kind.measured:
        raise UsageError(f"a {bundle.config.kind} is not measured", hint="'vambrace image inspect' shows its digests")
    output.progress("measuring")
    measurement = bundle.measurement().hex()
    output.result({"measurement": measurement, "hash-algorithm": bundle.config.hash}, [measurement])
    return 0


def _inspect(options: argparse.Namespace, output: Output) -> int:
    from vambrace.image import Bundle

    if options.bundle.startswith(registry.PREFIX):
        return registry.inspect_remote(options, output)
    output.progress("checking")
    bundle = Bundle.open(options.bundle)
    value = bundle.inspect()
    config = bundle.config
    kind, zones = config.kind, [["zone", "memory", "percent"]]
    for zone in config.zones:
        percent = ("follows the others" if zone.follow else str(zone.percent)) if kind.encrypted else "not encrypted"
        zones.append([zone.name, size(zone.memory), percent])
    parts = [["part", "size", "sha256"]]
    parts += [[part["title"], size(part["size"]), part["sha256"]] for part in value["parts"]]
    lines = [f"name         {config.name} ({kind}{', DEBUG: not confidential' if config.debug else ''})"]
    if kind.measured:
        lines.append(f"measurement  {value['measurement']}")
        lines.append(f"signed       {'yes, by whom only a platform can tell' if value['signed'] else 'no'}")
    if kind.attested:
        lines.append(f"owner        {value['personalization'][:32]}… (personalization)")
    cipher = f"cipher {config.cipher}, " if kind.encrypted else ""
    lines += [
        f"machine      {cipher}{f'measured with {config.hash}, ' if kind.measured else ''}{config.vcpus} vCPU",
        "",
        *table(zones),
        "",
        *table(parts),
        "",
        *(application.described for application in config.applications),
        *_disk_lines(bundle),
        *(_endpoint(endpoint) for endpoint in value["config"].get("endpoints", ())),
    ]
    output.result(value, lines)
    return 0


def _disk_lines(bundle: Bundle) -> list[str]:
    """The disks that are encrypted, by whose key, and those that it writes to."""
    config = bundle.config
    lines = [f"disk {disk.name}: encrypted, its key is {disk.key}" for disk in config.disks if disk.key]
    if config.storage:
        lines += [f"scratch space of {each.application}: {size(each.size)}" for each in config.storage.scratch]
        lines += [
            f"volume {each.name} of {each.application}: {size(each.size)} at {each.mount}, its key is {each.key}"
            for each in config.storage.volumes
        ]
    return lines


def _endpoint(endpoint: dict[str, Any]) -> str:
    pinned = f", measured as {endpoint['measurement']}" if endpoint["measurement"] else ""
    who = f"{endpoint['realm'] or 'any Realm'} of the owner {endpoint['owner'][:32]}…{pinned}"
    return f"endpoint {endpoint['name']}: {endpoint['role']}, port {endpoint['port']}, with {who}"
