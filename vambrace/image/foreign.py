"""What leads elsewhere in the manifests of others' images: found before skopeo follows it.

A descriptor may have ``urls``, "from which this object MAY be downloaded" (OCI image specification, "Descriptors"), and
skopeo goes there, wherever it is: into the network of the machine that builds, say. No layer that is needed has any
since layers that may not be distributed are deprecated, so all of them are refused.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vambrace.errors import ImageError

MAX_JSON: Final = 4 << 20  # bytes of a manifest
MAX_MANIFESTS: Final = 1000  # of a folder or archive
_DIGEST: Final = re.compile(r"([a-z0-9]{1,20}):([0-9a-f]{32,128})")
_UNDISTRIBUTED: Final = re.compile(r"foreign|nondistributable", re.IGNORECASE)
_HINT: Final = "push the image again with all of its layers"

#: Keys are in lower case, as skopeo makes no difference between them.
Manifest = dict[str, Any]


def read_manifest(data: bytes, where: str) -> Manifest:
    """A manifest or index, of which nothing is elsewhere. Raises ``ImageError``, also where it could be read in two
    ways."""

    def keep(pairs: list[tuple[str, Any]]) -> Manifest:
        found: Manifest = {}
        for key, value in pairs:
            name = key.casefold()
            if name in found:
                raise ImageError(f"{where}: its manifest says {name[:40]!r} twice", hint=_HINT)
            if name == "urls" and value:
                raise ImageError(f"{where}: a layer of it is elsewhere, at an address of its own", hint=_HINT)
            if name == "mediatype" and isinstance(value, str) and _UNDISTRIBUTED.search(value):
                raise ImageError(f"{where}: a layer of it may not be distributed, and is elsewhere", hint=_HINT)
            found[name] = value
        return found

    try:
        if len(data) > MAX_JSON:
            raise ImageError(f"{where}: its manifest has {len(data)} bytes", hint=f"at most {MAX_JSON} are read")
        value = json.loads(data, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        raise ImageError(f"{where}: its manifest is not JSON, or too deep", hint=_HINT) from None
    if not isinstance(value, dict):
        raise ImageError(f"{where}: its manifest is no JSON object", hint=_HINT)
    if "manifests" in value and "layers" in value:
        raise ImageError(f"{where}: its manifest is an index as well", hint=_HINT)
    return value


def stated_size(manifest: Manifest, where: str) -> int:
    """Bytes of all blobs that it names. Raises ``ImageError`` where it does not say so."""
    layers = manifest.get("layers")
    blobs = [manifest.get("config"), *(layers if isinstance(layers, list) else [None])]
    total = 0
    for blob in blobs:
        size = blob.get("size") if isinstance(blob, dict) else None
        if type(size) is not int or size < 0:
            raise ImageError(f"{where}: its manifest does not say how large its layers are", hint=_HINT)
        total += size
    return total


def check_local(source: str) -> None:
    """That no manifest of an image's folder or file (``oci:``, ``oci-archive:``, with its path) leads elsewhere; what
    is in other forms has no manifest that could. Raises ``ImageError``."""
    transport, _, rest = source.partition(":")
    if transport not in ("oci", "oci-archive"):
        return
    path = Path(rest if Path(rest).exists() else rest.rpartition(":")[0])
    try:
        blobs = _Folder(path) if transport == "oci" else _Archive(path)
        waiting = [blobs.read("index.json") or b"{}"]
        seen: set[str] = set()
        while waiting:
            for digest in _named(read_manifest(waiting.pop(), str(path))):
                if digest not in seen:
                    seen.add(digest)
                    content = blobs.read(f"blobs/{digest}")
                    waiting += [content] if content is not None else []
            if len(seen) > MAX_MANIFESTS:
                raise ImageError(f"{path} holds more than {MAX_MANIFESTS} manifests", hint="save the one image alone")
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}", hint="save the image again") from None


def _named(manifest: Manifest) -> Iterator[str]:
    """Places of the manifests that an index names."""
    entries = manifest.get("manifests")
    for entry in entries if isinstance(entries, list) else []:
        match = _DIGEST.fullmatch(str(entry.get("digest"))) if isinstance(entry, dict) else None
        if match:
            yield f"{match[1]}/{match[2]}"


class _Folder:
    """Small files of a layout."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        """The beginning of what is there, in full if it is no larger than a manifest may be."""
        try:
            with (self._path / name).open("rb") as file:
                return file.read(MAX_JSON + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None


class _Archive:
    """The same in a tar, which has nothing but files and folders: no name in it stands for another."""

    def __init__(self, path: Path) -> None:
        from vambrace.image.containers import tar

        self._path = path
        self._files: dict[str, tuple[int, int]] = {}
        with path.open("rb") as file:
            for member in tar.read_members(file):
                if member.kind not in (tar.FILE, tar.FOLDER):
                    raise ImageError(f"{path} holds links", hint="save the image again")
                if member.kind == tar.FILE:
                    name = posixpath.normpath(member.name.decode("utf-8", "surrogateescape")).lstrip("/")
                    self._files[name] = (member.offset, member.size)

    def read(self, name: str) -> bytes | None:
        if name not in self._files:
            return None
        offset, size = self._files[name]
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(min(size, MAX_JSON + 1))
