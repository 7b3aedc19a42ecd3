"""Bundles in registries: pushed and pulled as OCI artifacts, with the signatures that belong to them.

    name:tag    the image: manifest, configuration, kernel, initrd, disks, each a blob

``remote_images`` has what a registry states of an image, ``remote_signatures`` what stands beside it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vambrace.errors import BuildError, NoSpace, UsageError
from vambrace.image import bundle as form
from vambrace.image import ustar
from vambrace.image.bundle import Bundle, Part, check_output
from vambrace.image.layout import Layout, read_object
from vambrace.image.oci import BLOBS, MANIFEST, descriptor, index_of, write_layout
from vambrace.image.remote_images import Reference, RemoteImage
from vambrace.image.remote_signatures import (
    Signature,
    fetch_cosign_signatures,
    fetch_owners_signature,
    owners_parts,
    send_cosign_signatures,
    send_owners_signature,
)
from vambrace.image.skopeo import Skopeo

#: Raises for a bundle that is not signed as it must be.
Check = Callable[[Bundle, Sequence[Signature]], None]


def push(bundle: Bundle, reference: Reference, skopeo: Skopeo, signatures: Sequence[Signature] = ()) -> Reference:
    """Send ``bundle`` to ``reference``, its owner's signature and cosign's ``signatures`` with it; blobs that the
    repository has are not sent again. Its exact reference. Raises ``RegistryError``, ``ImageError``.
    """
    if reference.digest:
        raise UsageError("an image is pushed to a tag", hint="docker://registry/name:tag")
    with _workplace(bundle.path.parent) as place:
        layout = Layout(place / "layout")
        image, owners = _lay_out(bundle, layout)
        skopeo.send(layout.folder, "image", str(reference), total=bundle.path.stat().st_size)
        exactly = reference.beside(digest=bundle.manifest_digest)
        if owners is not None:
            send_owners_signature(layout, exactly, owners, skopeo)
        if signatures:
            send_cosign_signatures(layout, exactly, signatures, skopeo)
        assert image["digest"] == f"sha256:{exactly.digest}"
        return exactly


def pull(image: RemoteImage, out: Path, skopeo: Skopeo, check: Check | None = None) -> Bundle:
    """Fetch ``image`` into the bundle ``out``, replaced whole or not at all, once ``check`` has not raised for it and
    its cosign signatures; without one, whoever made it. Raises ``RegistryError``, ``ImageError``, ``ConfigError``,
    ``BuildError``, ``NoSpace``.
    """
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder", hint="choose another --output")
    check_output(out)
    if 2 * image.size > shutil.disk_usage(out.parent).free:
        hint = "free some, or choose another --output"
        raise NoSpace(str(out.parent), f"an image of {image.size >> 20} MiB", hint=hint)
    with _workplace(out.parent) as place:
        layout = Layout(place / "layout")
        largest = max(blob.size for blob in image.blobs)
        skopeo.fetch(str(image.exactly), layout.folder, "image", largest=largest, total=image.size, trusted=True)
        owners = fetch_owners_signature(image, layout, skopeo)
        temporary = place / "bundle"
        _pack(image, layout, owners, temporary)
        bundle = Bundle.open(temporary)
        if check is not None:
            check(bundle, fetch_cosign_signatures(image, skopeo, place))
        temporary.rename(out)
    return Bundle.read(out)


@contextmanager
def _workplace(beside: Path) -> Iterator[Path]:
    """A folder on the disk that the image is on, which must hold it once more. Raises ``BuildError``, ``NoSpace``."""
    try:
        with tempfile.TemporaryDirectory(prefix=".vambrace-", dir=beside, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(str(beside), "the image", hint="free some") from None
        hint = "choose another place for the bundle"
        raise BuildError(f"{error.filename or beside}: {error.strerror}", hint=hint) from None


def _lay_out(bundle: Bundle, layout: Layout) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """All blobs of ``bundle``; the descriptors of the image's manifest and of its signature's."""
    with bundle.path.open("rb") as file:
        members = ustar.read_members(file, most=form.MAX_MEMBERS)
    for name, (offset, size) in members.items():
        if name.startswith(f"{BLOBS}/"):
            layout.put("", Part(bundle.path, "part", Path(name).name, offset, size))
    offset, size = members["index.json"]
    with bundle.path.open("rb") as file:
        file.seek(offset)
        manifests = read_object(file.read(size), "the bundle's index")["manifests"]
    layout.name("image", manifests[0])
    if len(manifests) == 1:
        return manifests[0], None
    layout.name("owners", manifests[1])
    return manifests[0], manifests[1]


def _pack(image: RemoteImage, layout: Layout, owners: dict[str, Any] | None, out: Path) -> None:
    """The bundle of what was fetched, its manifest as it was sent: the bytes that were pushed."""
    top = descriptor(MANIFEST, image.digest, len(image.manifest)) | {"artifactType": form.ARTIFACT}
    digests = [*(blob.digest for blob in image.blobs), image.digest, *owners_parts(layout, owners)]
    parts = [Part(layout.blob(each), "part", each, 0, layout.blob(each).stat().st_size) for each in digests]
    with out.open("xb") as file:
        write_layout(file, index_of([top, *([owners] if owners else [])]), [part.blob for part in parts])
        file.flush()
        os.fsync(file.fileno())
