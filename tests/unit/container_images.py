"""Layers and images for tests, honest and hostile ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from vambrace.image.containers.make import write_image
from vambrace.image.containers.tree import Tree

CONFIG = {"Cmd": ["/bin/true"]}


def member(name: str, content: bytes | None = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer: a file with ``content``, or what ``type`` says."""
    info = tarfile.TarInfo(name)
    info.size = len(content or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    if name.endswith("/") and "type" not in fields:
        info.type = tarfile.DIRTYPE
    return info, content or b""


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return link(name, target, tarfile.LNKTYPE)


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """The tar of ``members``, in their order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def stack(*layers: bytes) -> dict[str, str]:
    """What ``layers`` come to: kind, permissions and owner by path."""
    tree = Tree()
    for data in layers:
        tree.apply(io.BytesIO(data))
    return {path: f"{node.kind} {node.permissions:o} {node.uid}:{node.gid}" for path, node in tree.walk()}


def image(folder: Path, *layers: bytes, config: dict[str, Any] | None = None, architecture: str = "") -> str:
    """An OCI layout in the new ``folder`` with these layers; its reference."""
    folder.mkdir()
    files = []
    for number, data in enumerate(layers):
        files.append(folder.parent / f"{folder.name}-{number}.tar")
        files[-1].write_bytes(data)
    return write_image(folder, files, config or CONFIG, architecture)
