"""What a manifest's applications need beside their own files, made ready before the image is built.

Locks are beside the manifest, or ``beside`` where one would be that was never written.
"""

from __future__ import annotations

from pathlib import Path

from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.image import python
from vambrace.image.base import CONTAINER_PACKAGES, RuntimeBase, runtime_base
from vambrace.image.manifest import Manifest
from vambrace.image.packages import locked_packages


def manifest_base(manifest: Manifest, archive: Archive, cache: Cache, beside: Path | None = None) -> RuntimeBase:
    """The base for ``manifest``: the usual one, or one with the packages that its applications name, and one that runs
    containers, or the system of a disk, only if there are any.

    Raises ``ConfigError``, ``BuildError`` (``ToolMissing``, ``NoSpace``).
    """
    names = {name for program in manifest.programs for name in program.packages}
    containers = any(program.container for program in manifest.programs)
    if not names:
        return runtime_base(archive, cache, containers=containers, systems=bool(manifest.vm))
    if containers:
        names.update(CONTAINER_PACKAGES)
    packages = locked_packages(names, beside or manifest.path, archive.directory, newer=archive.newer)
    return runtime_base(archive, cache, packages, containers=containers)


def environments(
    manifest: Manifest, base: RuntimeBase, cache: Cache, beside: Path | None = None, *, newer: bool = False
) -> dict[str, Path]:
    """The virtual environment of each application that has requirements, by the application's name.

    Raises ``ConfigError``, ``BuildError`` (``ToolMissing``, ``NoSpace``).
    """
    found = {}
    for program in manifest.programs:
        if program.requirements is not None:
            name, guest = program.zone.name, python.Guest.of(base.tree)
            lock = python.lock_path(beside or manifest.path, name)
            wheels = python.locked_wheels(program.requirements, lock, guest, newer=newer)
            found[name] = python.environment(wheels, name, guest, cache)
    return found
