"""OCI's image specification 1.1, as far as bundles and registries need it: media types, descriptors, a layout in a tar.

A layout is ``oci-layout``, ``index.json``, and each blob once below ``blobs/sha256`` ("Image Layout Specification").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from vambrace.canonical import canonical
from vambrace.image import ustar

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
#: Annotations: what a layer is called, and an entry of an index.
TITLE: Final = "org.opencontainers.image.title"
NAME: Final = "org.opencontainers.image.ref.name"
LAYOUT: Final = {"imageLayoutVersion": "1.0.0"}
BLOBS: Final = "blobs/sha256"


@dataclass(frozen=True)
class Blob:
    """``size`` bytes whose SHA-256 is ``digest`` (hex); ``copy`` writes them."""

    digest: str
    size: int
    copy: Callable[[BinaryIO], None]

    @classmethod
    def of(cls, content: bytes) -> Blob:
        def copy(out: BinaryIO) -> None:
            out.write(content)

        return cls(hashlib.sha256(content).hexdigest(), len(content), copy)


def descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    """Of a blob of the media type ``kind``, with its SHA-256 in hex and its size in bytes."""
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def index_of(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The index that names the manifests with these descriptors."""
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}


def write_layout(out: BinaryIO, index: dict[str, Any], blobs: Iterable[Blob]) -> None:
    """Write a tar of the layout with ``index`` and ``blobs`` in their order: the same bytes for the same contents.

    Raises ``ImageError`` where a blob is too large, or not what it was, ``OSError``.
    """
    for name, value in (("oci-layout", LAYOUT), ("index.json", index)):
        blob = Blob.of(canonical(value))
        ustar.write_member(out, name, blob.size, blob.copy)
    for digest, blob in {blob.digest: blob for blob in blobs}.items():
        ustar.write_member(out, f"{BLOBS}/{digest}", blob.size, blob.copy)
    ustar.write_end(out)
