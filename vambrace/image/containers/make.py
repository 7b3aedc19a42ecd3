"""An OCI layout of layers that are at hand, without running anything of them: for tests, examples, and the curious."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vambrace.canonical import canonical
from vambrace.debian.archive import ARCHITECTURE
from vambrace.image.layout import Layout
from vambrace.image.oci import IMAGE_CONFIG, LAYER_GZIP, MANIFEST

TAG: Final = "latest"


def write_image(folder: Path, layers: Sequence[Path], config: Mapping[str, Any], architecture: str = "") -> str:
    """Write an OCI image layout with one image, ``TAG``, of these ``layers`` (tars), lowest first.

    ``config`` is the part that says how the image is run (OCI image specification 1.1, "Image Configuration").
    Returns the reference ``oci:FOLDER:TAG``.
    """
    layout = Layout(folder)
    unpacked = [layer.read_bytes() for layer in layers]
    described = [layout.put(LAYER_GZIP, gzip.compress(data, compresslevel=1, mtime=0)) for data in unpacked]
    image = {
        "architecture": architecture or ARCHITECTURE,
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in unpacked]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.put(IMAGE_CONFIG, canonical(image)),
        "layers": described,
    }
    layout.name(TAG, layout.put(MANIFEST, canonical(manifest)))
    return f"oci:{folder}:{TAG}"
