"""Container images of Debian's arm64 packages as they are, recorded in ``packages.lock``, and a folder's own files over
them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vambrace.debian.archive import Archive
from vambrace.debian.container import Owner, debian_layer, pack_layer
from vambrace.image.containers.make import write_image

LOCK: Final = Path(__file__).with_name("packages.lock")
#: Accounts, the linker's tools and a shell: what nearly every image has.
COMMON: Final = ("base-passwd", "coreutils", "dash", "libc-bin")
LAYOUT: Final = "layout"


@dataclass(frozen=True)
class Image:
    """``packages`` and what they depend on, ``without`` some of that; ``owners`` of paths, by the names of accounts;
    ``accounts`` are those that Debian's scripts make in many words; ``says`` how it is run (OCI image specification,
    config: User, Cmd, Env …)."""

    packages: tuple[str, ...]
    says: Mapping[str, Any]
    owners: Mapping[str, Owner] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()


def make_image(image: Image, group: str, files: Path | None, folder: Path, downloads: Path) -> str:
    """Write ``image`` as an OCI layout into ``folder``, with the contents of ``files`` on top; returns its reference.

    ``group`` is its name in the lock, ``downloads`` where an ``Archive`` keeps what it fetches. Raises ``BuildError``.
    """
    archive = Archive(downloads, LOCK)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        (work / "debian").mkdir()
        packages = (*COMMON, *image.packages)
        options = {"without": image.without, "accounts": image.accounts}
        layers = [debian_layer(archive, group, packages, work / "debian", image.owners, **options)]
        if files is not None:
            layers.append(pack_layer(_as_committed(files, work / "own"), work / "own.tar"))
        return write_image(folder / LAYOUT, layers, image.says)


def _as_committed(files: Path, target: Path) -> Path:
    """A copy with the modes that git knows, whatever this checkout's umask was."""
    shutil.copytree(files, target)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return target
