"""Builds one image of a kind, as another builder: ``python image_builder.py KIND SOURCES BASE PLACE``, prints digests.

Run by test_image_reproducible, whose two builders differ in all that must not matter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

from vambrace.debian import root
from vambrace.debian.cache import Cache
from vambrace.debian.configure import configure
from vambrace.debian.erofs import VerityDisk, make_erofs
from vambrace.image.base import RuntimeBase
from vambrace.image.build import build_bundle, read_attested_manifest
from vambrace.image.prepare import environments


def copy(source: Path, target: Path, *, backwards: bool) -> None:
    """As other tools would have made it: entries in another order, of another time."""
    if source.is_dir():
        target.mkdir()
        for entry in sorted(source.iterdir(), reverse=backwards):
            copy(entry, target / entry.name, backwards=backwards)
    else:
        shutil.copyfile(source, target)
        target.chmod(0o700 if source.stat().st_mode & 0o111 else 0o600 if backwards else 0o644)


def packages(base: Path, place: Path) -> str:
    """A root of packages, configured, as a disk."""
    files = sorted((base / "packages").glob("*.deb"))

    def make(work: Path) -> None:
        root.build_root(files, work / "tree")
        configure(files, work / "tree", ["application-1:*:1000:1000::/results:/bin/sh"])
        make_erofs(work / "tree", work / "disk")

    product = Cache(place / "cache").build("root", {}, make)
    return hashlib.sha256((product / "disk").read_bytes()).hexdigest()


def image(base: Path, place: Path) -> str:
    """The bundle of the manifest, with everything that it needs."""
    disk = base / "disk"
    info = VerityDisk(hashlib.sha256(disk.read_bytes()).hexdigest(), disk.stat().st_size, 4096, "ab" * 32, "cd" * 32)
    prepared = RuntimeBase(base / "kernel", base / "initrd", disk, info, base / "tree")
    manifest = read_attested_manifest(place / "sources/shop.yaml")
    found = environments(manifest, prepared, Cache(place / "cache"))
    bundle = build_bundle(manifest, place / "out", prepared, found)
    return f"{bundle.measurement().hex()} {hashlib.sha256((place / 'out').read_bytes()).hexdigest()}"


if __name__ == "__main__":
    kind, sources, base, place = sys.argv[1], *map(Path, sys.argv[2:5])
    copy(sources, place / "sources", backwards=len(sys.argv) > 5)
    digests = packages(base, place) if kind == "packages" else image(base, place)
    print(time.strftime("%Y"), os.getuid(), digests)
