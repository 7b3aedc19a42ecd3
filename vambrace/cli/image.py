"""``vambrace image``: manifests to bundles, and what a bundle will measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vambrace.cli.output import Output, size, table
from vambrace.cli.parser import Commands
from vambrace.client.progress import Progress

if TYPE_CHECKING:
    from vambrace.image import Bundle


def add(commands: Commands) -> None:
    group = commands.group("image", "secure images: bundles of kernel, initrd, disks and configuration")
    build = group.add(
        "build",
        "build the bundle of a manifest",
        _build,
        "vambrace image build patients.yaml -o patients.vambrace",
    )
    build.add_argument("manifest", type=Path)
    build.add_argument("-o", "--output", type=Path, help="the bundle (default: the manifest's name + .vambrace)")
    build.add_argument("--newer", action="store_true", help="take newer packages where the recorded are gone")
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
    for parser in (measure, inspect):
        parser.add_argument("bundle", type=Path)


def build_image(manifest: Path, bundle: Path, progress: Progress, *, newer: bool = False) -> Bundle:
    """Build ``manifest`` into ``bundle`` on the runtime base, which is built if the cache has it not."""
    import vambrace.debian
    from vambrace.debian.archive import Archive
    from vambrace.debian.cache import Cache
    from vambrace.image.base import runtime_base
    from vambrace.image.build import build_bundle
    from vambrace.image.manifest import read_manifest

    read_manifest(manifest)  # what is wrong with it is said before anything long
    progress("preparing the runtime base")
    cache = Cache()
    lock = Path(vambrace.debian.__file__).with_name("packages.lock")
    base = runtime_base(Archive(cache.root / "archive", lock, newer=newer), cache)
    progress("building the image")
    return build_bundle(manifest, bundle, base)


def default_bundle(manifest: Path) -> Path:
    return Path(manifest.stem + ".vambrace")


def _build(options: argparse.Namespace, output: Output) -> int:
    path = options.output or default_bundle(options.manifest)
    bundle = build_image(options.manifest, path, output.progress, newer=options.newer)
    output.progress("measuring")
    measurement = bundle.measurement().hex()
    value = {"bundle": str(path), "size": path.stat().st_size, "measurement": measurement}
    output.result(value, [f"{path}: {size(path.stat().st_size)}", f"measurement: {measurement}"])
    return 0


def _measure(options: argparse.Namespace, output: Output) -> int:
    from vambrace.image import Bundle

    output.progress("measuring")
    bundle = Bundle.open(options.bundle)
    measurement = bundle.measurement().hex()
    output.result({"measurement": measurement, "hash-algorithm": bundle.config.hash}, [measurement])
    return 0


def _inspect(options: argparse.Namespace, output: Output) -> int:
    from vambrace.image import Bundle

    output.progress("checking")
    bundle = Bundle.open(options.bundle)
    value = bundle.inspect()
    config = bundle.config
    zones = [["zone", "memory", "percent"]]
    for zone in config.zones:
        zones.append([zone.name, size(zone.memory), "follows the others" if zone.follow else str(zone.percent)])
    parts = [["part", "size", "sha256"]]
    parts += [[part["title"], size(part["size"]), part["sha256"]] for part in value["parts"]]
    lines = [
        f"name         {config.name} ({config.form}{', DEBUG: not confidential' if config.debug else ''})",
        f"measurement  {value['measurement']}",
        f"owner        {value['personalization'][:32]}… (personalization)",
        f"cipher       {config.cipher}, measured with {config.hash}, {config.vcpus} vCPU",
        "",
        *table(zones),
        "",
        *table(parts),
        "",
        *(f"{application.name}: {' '.join(application.command)}" for application in config.applications),
        *(_endpoint(endpoint) for endpoint in value["config"].get("endpoints", ())),
    ]
    output.result(value, lines)
    return 0


def _endpoint(endpoint: dict[str, Any]) -> str:
    pinned = f", measured as {endpoint['measurement']}" if endpoint["measurement"] else ""
    who = f"{endpoint['realm'] or 'any Realm'} of the owner {endpoint['owner'][:32]}…{pinned}"
    return f"endpoint {endpoint['name']}: {endpoint['role']}, port {endpoint['port']}, with {who}"
