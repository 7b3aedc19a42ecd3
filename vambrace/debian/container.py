"""Container images of Debian's packages: an OCI layout, written without running anything of them.

For those who have no image at hand: tests, examples, and whoever wants to know what is in one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vambrace.debian import root
from vambrace.debian.archive import ARCHITECTURE, Archive
from vambrace.debian.configure import add_accounts, configure
from vambrace.errors import BuildError

TAG = "latest"
_OCI = "application/vnd.oci.image"


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


def write_layout(folder: Path, layers: Sequence[Path], config: Mapping[str, Any], architecture: str = "") -> str:
    """Write an OCI image layout with one image, ``TAG``, of these ``layers`` (tars), lowest first.

    ``config`` is the part that says how the image is run. Returns the reference ``oci:FOLDER:TAG``.
    """
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    described = []
    for layer in layers:
        data = gzip.compress(layer.read_bytes(), compresslevel=1, mtime=0)
        described.append(put_blob(folder, data, f"{_OCI}.layer.v1.tar+gzip"))
    image = {
        "architecture": architecture or ARCHITECTURE,
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer.read_bytes())}" for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": put_blob(folder, json.dumps(image).encode(), f"{_OCI}.config.v1+json"),
        "layers": described,
    }
    entry = put_blob(folder, json.dumps(manifest).encode(), f"{_OCI}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{folder}:{TAG}"


def put_blob(folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Add a blob to the layout in ``folder``; returns its descriptor."""
    digest = _sha256(data)
    (folder / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _owner(name: str, owners: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    for path, owner in owners.items():
        if name == path.strip("/") or name.startswith(path.strip("/") + "/"):
            return owner
    return 0, 0


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
