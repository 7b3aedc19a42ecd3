"""Bundles in registries: pushed, looked at and pulled as OCI artifacts, with the signatures that belong to them.

    name:tag                the image: manifest, configuration, kernel, initrd, disks, each a blob
    name:sha256-DIGEST      its referrers, by the tag schema of OCI 1.1: the platform owner's signature (COSE)
    name:sha256-DIGEST.sig  cosign's signatures on the manifest

Everything that a registry sends is hostile until the bundle made of it is opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vambrace.canonical import canonical
from vambrace.config import MAX_CONFIG_BYTES, MAX_DISKS, DomainConfig
from vambrace.errors import BuildError, ImageError, NoSpace, UsageError
from vambrace.image import bundle as form
from vambrace.image import ustar
from vambrace.image.bundle import Bundle, Part, check_output
from vambrace.image.layout import Layout, image_config, printable, read_object
from vambrace.image.oci import BLOBS, IMAGE_CONFIG, INDEX, MANIFEST, TITLE, descriptor, index_of, write_layout
from vambrace.image.skopeo import MAX_MANIFEST, Skopeo

COSIGN_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
MAX_PAYLOAD: Final = 16 << 10
MAX_SIGNATURES: Final = 16
MAX_REFERRERS: Final = 16
_LARGEST: Final = (8 << 30) - 1  # a part of a bundle
_REFERENCE = re.compile(
    r"docker://(?P<name>[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

#: A signature on a manifest: the signed payload, and the signature in base64.
Signature = tuple[bytes, str]
#: Raises for a bundle that is not signed as it must be.
Check = Callable[[Bundle, Sequence[Signature]], None]


@dataclass(frozen=True)
class Reference:
    """``name`` is a registry's with the repository's; of ``tag`` and ``digest`` (hex) there is one."""

    name: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Of docker://registry/name:tag or docker://registry/name@sha256:…. Raises ``UsageError``."""
        match = _REFERENCE.fullmatch(text)
        if match is None or (match["tag"] and match["digest"]):
            raise UsageError(f"{text[:200]!r} is no image in a registry", hint="docker://registry/name:tag")
        digest = match["digest"] or ""
        return cls(match["name"], "" if digest else match["tag"] or "latest", digest)

    def __str__(self) -> str:
        return f"docker://{self.name}@sha256:{self.digest}" if self.digest else f"docker://{self.name}:{self.tag}"

    def beside(self, tag: str = "", digest: str = "") -> Reference:
        """Another one of the same repository."""
        return Reference(self.name, tag, digest)


@dataclass(frozen=True)
class Blob:
    """What a descriptor states of a blob."""

    title: str
    digest: str
    size: int


@dataclass(frozen=True)
class RemoteImage:
    """A manifest that a registry holds, checked as far as it can be without its blobs."""

    reference: Reference
    manifest: bytes
    blobs: tuple[Blob, ...]  # configuration, kernel, initrd, disks

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def exactly(self) -> Reference:
        return self.reference.beside(digest=self.digest)

    @property
    def size(self) -> int:
        return sum(blob.size for blob in self.blobs)


def look(reference: Reference, skopeo: Skopeo) -> RemoteImage:
    """The image that ``reference`` names. Raises ``RegistryError``, ``ImageError``."""
    manifest = skopeo.manifest(str(reference))
    if manifest is None:
        raise ImageError(f"{reference}: the registry has no such image", hint="correct the reference")
    if reference.digest and hashlib.sha256(manifest).hexdigest() != reference.digest:
        raise ImageError(f"{reference}: the registry sent another manifest", hint="do not use this registry")
    return describe(reference, manifest)


def describe(reference: Reference, manifest: bytes) -> RemoteImage:
    """What ``manifest`` states. Raises ``ImageError`` where it is not that of a bundle."""
    value = read_object(manifest, f"{reference}: its manifest")
    kind = value.get("artifactType")
    if value.get("mediaType") != MANIFEST or kind != form.ARTIFACT:
        other = printable(str(kind or value.get("mediaType")))
        raise ImageError(f"{reference}: no image of vambrace, but {other}", hint=f"its artifactType is {form.ARTIFACT}")
    layers = value.get("layers")
    if not isinstance(layers, list) or not 2 <= len(layers) <= 2 + MAX_DISKS:
        raise ImageError(f"{reference}: not the parts of an image of vambrace", hint="push it again")
    most = [form.MAX_KERNEL, form.MAX_INITRD, *[_LARGEST] * MAX_DISKS]
    blobs = [_blob(value.get("config"), "configuration", MAX_CONFIG_BYTES)]
    for layer, bound in zip(layers, most, strict=False):
        notes = layer.get("annotations") if isinstance(layer, dict) else None
        title = printable(str(notes.get(TITLE) if isinstance(notes, dict) else "disk"))
        blobs.append(_blob(layer, title, bound))
    return RemoteImage(reference, manifest, tuple(blobs))


def configuration(image: RemoteImage, skopeo: Skopeo) -> DomainConfig:
    """That of ``image``, and nothing else of it. Raises ``RegistryError``, ``ImageError``, ``ConfigError``."""
    wanted = image.blobs[0]
    content = skopeo.config(str(image.exactly))
    if len(content) != wanted.size or hashlib.sha256(content).hexdigest() != wanted.digest:
        raise ImageError(f"{image.reference}: its configuration has not its digest", hint="do not use this registry")
    return DomainConfig.parse(content)


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
            _send_referrer(layout, exactly, owners, skopeo)
        if signatures:
            _send_signatures(layout, exactly, signatures, skopeo)
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
        owners = _fetch_referrer(image, layout, skopeo)
        temporary = place / "bundle"
        _pack(image, layout, owners, temporary)
        bundle = Bundle.open(temporary)
        if check is not None:
            check(bundle, fetch_signatures(image, skopeo, place))
        temporary.rename(out)
    return Bundle.open(out)


def signers(image: RemoteImage, skopeo: Skopeo) -> tuple[bool, int]:
    """Whether there is a platform owner's signature, and how many of cosign's; whose they are, is not looked at."""
    owners = _owners_signature(image.reference, _referrers(image.exactly, skopeo), skopeo) is not None
    raw = skopeo.manifest(str(image.reference.beside(tag=f"sha256-{image.digest}.sig")))
    layers = read_object(raw, "the list of signatures").get("layers") if raw else None
    return owners, len(layers) if isinstance(layers, list) else 0


def fetch_signatures(image: RemoteImage, skopeo: Skopeo, place: Path) -> list[Signature]:
    """cosign's signatures on ``image``, by whomever; ``place`` is a folder for them. Raises as ``pull``."""
    reference = image.reference.beside(tag=f"sha256-{image.digest}.sig")
    raw = skopeo.manifest(str(reference))
    if raw is None:
        return []
    layers = read_object(raw, f"{reference}").get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_SIGNATURES:
        raise ImageError(f"{reference}: no list of at most {MAX_SIGNATURES} signatures", hint="sign the image again")
    found, blobs = [], [_blob(layer, "signature", MAX_PAYLOAD) for layer in layers]
    layout = Layout(place / "signatures")
    exactly = reference.beside(digest=hashlib.sha256(raw).hexdigest())
    total = sum(blob.size for blob in blobs)
    skopeo.fetch(str(exactly), layout.folder, "signatures", largest=MAX_PAYLOAD, total=total)
    for layer, blob in zip(layers, blobs, strict=True):
        notes = layer.get("annotations")
        signature = notes.get(COSIGN_ANNOTATION) if isinstance(notes, dict) else None
        if layer.get("mediaType") == COSIGN_PAYLOAD and isinstance(signature, str):
            found.append((layout.take(blob.digest, blob.size), signature))
    return found


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


def _blob(descriptor: Any, title: str, most: int) -> Blob:
    match = _DIGEST.fullmatch(str(descriptor.get("digest"))) if isinstance(descriptor, dict) else None
    if match is None or type(descriptor.get("size")) is not int:
        raise ImageError(f"the manifest says no digest and size of the {title}", hint="push it again")
    if not 0 <= descriptor["size"] <= most:
        raise ImageError(f"the manifest states {descriptor['size']} bytes of {title}", hint=f"at most {most}")
    return Blob(title, match[1], descriptor["size"])


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


def _send_referrer(layout: Layout, image: Reference, owners: dict[str, Any], skopeo: Skopeo) -> None:
    """The owner's signature, in the place of another one, beside all else that refers to the image."""
    digest = owners["digest"].removeprefix("sha256:")
    skopeo.send(layout.folder, "owners", str(image.beside(digest=digest)), total=0)
    present = _referrers(image, skopeo)
    ours = _owners_signature(image, present, skopeo)
    others = [each for each in present if each is not ours and each.get("digest") != owners["digest"]]
    layout.name("referrers", layout.put(INDEX, canonical(index_of([*others, owners]))))
    skopeo.send(layout.folder, "referrers", str(image.beside(tag=f"sha256-{image.digest}")), total=0, index=True)


def _referrers(image: Reference, skopeo: Skopeo) -> list[dict[str, Any]]:
    raw = skopeo.manifest(str(image.beside(tag=f"sha256-{image.digest}")))
    if raw is None:
        return []
    manifests = read_object(raw, f"{image}: its list of referrers").get("manifests")
    if not isinstance(manifests, list) or len(manifests) > MAX_REFERRERS:
        raise ImageError(f"{image}: no list of at most {MAX_REFERRERS} referrers", hint="remove that tag")
    if not all(isinstance(each, dict) for each in manifests):
        raise ImageError(f"{image}: its list of referrers is none", hint="remove that tag")
    return manifests


def _owners_signature(
    image: Reference, referrers: Sequence[dict[str, Any]], skopeo: Skopeo
) -> dict[str, Any] | None:
    """The one of ``referrers`` that is a platform owner's signature: its manifest says so, its descriptor need not."""
    for each in referrers:
        if each.get("artifactType", form.SIGNATURE) == form.SIGNATURE and each.get("mediaType") == MANIFEST:
            blob = _blob(each, "signature's manifest", MAX_MANIFEST)
            raw = skopeo.manifest(str(image.beside(digest=blob.digest)))
            if raw and read_object(raw, "a referrer").get("artifactType") == form.SIGNATURE:
                return each
    return None


def _send_signatures(layout: Layout, image: Reference, signatures: Sequence[Signature], skopeo: Skopeo) -> None:
    """cosign's signatures, beside those that are there."""
    place = layout.folder.parent / "present"
    place.mkdir()
    present = fetch_signatures(RemoteImage(image, layout.blob(image.digest).read_bytes(), ()), skopeo, place)
    layers = []
    for payload, signature in [*[each for each in present if each not in signatures], *signatures]:
        layers.append(layout.put(COSIGN_PAYLOAD, payload) | {"annotations": {COSIGN_ANNOTATION: signature}})
    layers = layers[-MAX_SIGNATURES:]
    config = layout.put(IMAGE_CONFIG, image_config(layers))
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    layout.name("cosign", layout.put(MANIFEST, canonical(manifest)))
    skopeo.send(layout.folder, "cosign", str(image.beside(tag=f"sha256-{image.digest}.sig")), total=0)


def _fetch_referrer(image: RemoteImage, layout: Layout, skopeo: Skopeo) -> dict[str, Any] | None:
    """The owner's signature in ``layout``, if the registry has one: its manifest's descriptor."""
    found = _owners_signature(image.reference, _referrers(image.exactly, skopeo), skopeo)
    if found is None:
        return None
    blob = _blob(found, "signature's manifest", MAX_MANIFEST)
    reference = image.reference.beside(digest=blob.digest)
    skopeo.fetch(str(reference), layout.folder, "owners", largest=form.MAX_SIGNATURE, total=0)
    return descriptor(MANIFEST, blob.digest, blob.size) | {"artifactType": form.SIGNATURE}


def _pack(image: RemoteImage, layout: Layout, owners: dict[str, Any] | None, out: Path) -> None:
    """The bundle of what was fetched, its manifest as it was sent: the bytes that were pushed."""
    top = descriptor(MANIFEST, image.digest, len(image.manifest)) | {"artifactType": form.ARTIFACT}
    digests = [*(blob.digest for blob in image.blobs), image.digest, *_parts(layout, owners)]
    parts = [Part(layout.blob(each), "part", each, 0, layout.blob(each).stat().st_size) for each in digests]
    with out.open("xb") as file:
        write_layout(file, index_of([top, *([owners] if owners else [])]), [part.blob for part in parts])
        file.flush()
        os.fsync(file.fileno())


def _parts(layout: Layout, owners: dict[str, Any] | None) -> list[str]:
    """The digests of a signature's blobs and of its manifest. Raises ``ImageError``."""
    if owners is None:
        return []
    blob = _blob(owners, "signature's manifest", MAX_MANIFEST)
    manifest = read_object(layout.take(blob.digest, blob.size), "the signature's manifest")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) != 1:
        raise ImageError("the registry's signature has not the one part that it must have", hint="sign the image again")
    config = _blob(manifest.get("config"), "signature's configuration", form.MAX_SIGNATURE)
    signature = _blob(layers[0], "signature", form.MAX_SIGNATURE)
    for each in (config, signature):
        layout.take(each.digest, each.size)
    return [config.digest, signature.digest, blob.digest]
