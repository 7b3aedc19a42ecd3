"""Layers of container images of Debian's packages, written without running anything of them.

For those who have no image at hand: tests, examples, and whoever wants to know what is in one.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.configure import add_accounts, configure
from vambrace.errors import BuildError

#: Who owns a path and what is below it: numbers of a user and a group, or an account that the packages make.
Owner = tuple[int, int] | str


def debian_layer(
    archive: Archive,
    group: str,
    packages: Sequence[str],
    work: Path,
    owners: Mapping[str, Owner],
    *,
    without: Sequence[str] = (),
    accounts: Sequence[str] = (),
) -> Path:
    """A layer with ``packages`` and all that they depend on, configured as far as no script must run.

    ``group`` is their name in the lock, ``work`` a folder for files, ``owners`` those of paths; all else is root's.
    What some depend on and nobody here uses may stay out: ``without``. ``accounts`` are system accounts that scripts of
    the packages make in a way that is not followed (``configure``). Raises ``BuildError``, ``ToolMissing``.
    """
    found = archive.binaries(group, packages)
    if strange := sorted({*without} - {package.name for package in found}):
        raise BuildError(f"{strange[0]} is left out, but nothing depends on it", hint="name what there is to leave out")
    files = archive.fetch([package for package in found if package.name not in without])
    tree = work / "tree"
    root.build_root(files, tree)
    if (tree / "usr/sbin/ldconfig").exists():  # an image of static programs has no libc-bin
        configure(files, tree)
    if accounts:
        add_accounts(tree, accounts)
    for name in ("app", "results", "state"):
        (tree / name).rmdir()
    (tree / "tmp").chmod(0o1777)
    numbers = {path: account(tree, owner) if isinstance(owner, str) else owner for path, owner in owners.items()}
    return pack_layer(tree, work / "layer.tar", numbers)


def account(tree: Path, name: str) -> tuple[int, int]:
    """The numbers of the user ``name`` and its group in the system ``tree``. Raises ``BuildError``."""
    for line in (tree / "etc/passwd").read_text().splitlines():
        found, _, uid, gid = line.split(":")[:4]
        if found == name:
            return int(uid), int(gid)
    raise BuildError(f"there is no account {name} in these packages", hint="name the package that makes it")


def pack_layer(tree: Path, out: Path, owners: Mapping[str, tuple[int, int]] | None = None) -> Path:
    """The files of ``tree`` as a layer: sorted, times zero, the same bits for the same tree."""
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as layer:
        for path in sorted(tree.rglob("*")):
            name = path.relative_to(tree).as_posix()
            member = layer.gettarinfo(str(path), name)
            member.mtime = 0
            member.uname = member.gname = ""
            member.uid, member.gid = _owner(name, owners or {})
            with (path if member.isreg() else Path(os.devnull)).open("rb") as content:
                layer.addfile(member, content)
    return out


def _owner(name: str, owners: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    for path, owner in owners.items():
        if name == path.strip("/") or name.startswith(path.strip("/") + "/"):
            return owner
    return 0, 0
