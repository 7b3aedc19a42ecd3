"""A folder in the form of an OCI image layout (version 1.0.0), by which skopeo takes and gives images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vambrace.canonical import canonical, decode_json
from vambrace.errors import ConfigError, ImageError
from vambrace.image.bundle import Part
from vambrace.image.oci import BLOBS, LAYOUT, NAME, descriptor, index_of


class Layout:
    """The layout in ``folder``, which is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._named: list[dict[str, Any]] = []
        (folder / BLOBS).mkdir(parents=True)
        (folder / "oci-layout").write_bytes(canonical(LAYOUT))

    def blob(self, digest: str) -> Path:
        """Where the blob with ``digest`` (hex) is, or would be."""
        return self.folder / BLOBS / digest

    def put(self, kind: str, content: bytes | Part) -> dict[str, Any]:
        """Add a blob; its descriptor. Raises ``ImageError`` where a part has changed."""
        if isinstance(content, Part):
            digest, size = content.digest, content.size
            with self.blob(digest).open("wb") as file:
                content.copy(file)
        else:
            digest, size = hashlib.sha256(content).hexdigest(), len(content)
            self.blob(digest).write_bytes(content)
        return descriptor(kind, digest, size)

    def name(self, name: str, descriptor: dict[str, Any]) -> None:
        """Make the manifest or index of ``descriptor`` known as ``name``."""
        self._named.append(descriptor | {"annotations": {NAME: name}})
        (self.folder / "index.json").write_bytes(canonical(index_of(self._named)))

    def take(self, digest: str, size: int) -> bytes:
        """A small blob that skopeo has put there. Raises ``ImageError``: not there, or not that."""
        try:
            content = self.blob(digest).read_bytes()
        except OSError:
            raise ImageError("the registry did not send all of the image", hint="fetch it again") from None
        if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
            raise ImageError("the registry sent something else than its manifest states", hint="fetch it again")
        return content


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of anybody's. Raises ``ImageError``."""
    try:
        value = decode_json(data)
    except ConfigError:
        value = None
    if not isinstance(value, dict):
        raise ImageError(f"{what} is no JSON object", hint="this is no image of vambrace")
    return value


def printable(text: str) -> str:
    """The beginning of what a stranger says, fit for one line."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:100])


def image_config(layers: list[dict[str, Any]]) -> bytes:
    """The configuration of an image that is not run, as cosign writes it: nothing but which layers it has."""
    ids = [layer["digest"] for layer in layers]
    config = {"architecture": "", "config": {}, "os": "", "rootfs": {"type": "layers", "diff_ids": ids}}
    return json.dumps(config, sort_keys=True).encode()
