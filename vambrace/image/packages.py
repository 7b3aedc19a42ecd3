"""Debian's packages that a manifest names: resolved once, recorded beside it, the same bits ever after."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from vambrace.debian.archive import STABLE, Archive, Package
from vambrace.errors import BuildError, ConfigError
from vambrace.image import base

#: What every base with further packages has beside the usual ones: the dynamic linker's own tools and settings.
_ALWAYS: Final = (*base.PACKAGES, "libc-bin")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")  # Debian policy 5.6.1
_MAX_PACKAGES: Final = 200
_UNKNOWN = re.compile(r"Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate")


def check_packages(names: Sequence[str]) -> None:
    """Raises ``ConfigError`` where one of ``names`` can be no package's, or stands there twice."""
    if len(names) > _MAX_PACKAGES:
        raise ConfigError(f"{len(names)} packages", hint=f"at most {_MAX_PACKAGES}; what they need comes by itself")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name[:40]!r} is no name of a Debian package", hint="apt's name, without a version")
        if names.count(name) > 1:
            raise ConfigError(f"package {name} appears twice", hint="name it once")


def lock_path(manifest: Path) -> Path:
    """Where the packages of ``manifest`` are recorded: beside it."""
    return manifest.with_suffix(".packages.lock")


def locked_packages(names: Iterable[str], manifest: Path, directory: Path, *, newer: bool = False) -> list[Package]:
    """``names`` and all that they and the runtime base depend on, as recorded for ``manifest``; resolved and recorded
    if they are not yet, or ``newer`` ones are wanted. ``directory`` is the private apt's.

    Raises ``ConfigError`` for what Debian does not have, ``BuildError``.
    """
    wanted = sorted({*names} - {*_ALWAYS})
    archive = Archive(directory, lock_path(manifest), newer=newer)
    try:
        # Resolved for these names and no others: what a manifest once named is not kept.
        return archive.only_binaries(" ".join(wanted) or "base", [*_ALWAYS, *wanted])
    except BuildError as error:
        unknown = _UNKNOWN.search(error.message)
        if unknown is None:
            raise
        raise ConfigError(
            f"Debian {STABLE} has no package {unknown[1] or unknown[2]} for arm64", hint="look at packages.debian.org"
        ) from None
