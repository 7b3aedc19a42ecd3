"""Images in registries, before anything of them is fetched: how they are named, and what their manifests state.

Everything that a registry sends is hostile until the bundle made of it is opened.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from vambrace.config import MAX_CONFIG_BYTES, MAX_DISKS, DomainConfig
from vambrace.errors import ImageError, UsageError
from vambrace.image import bundle as form
from vambrace.image.layout import printable, read_object
from vambrace.image.oci import MANIFEST, TITLE
from vambrace.image.skopeo import Skopeo

_LARGEST: Final = (8 << 30) - 1  # a part of a bundle
_REFERENCE = re.compile(
    r"docker://(?P<name>[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


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
    blobs = [read_blob(value.get("config"), "configuration", MAX_CONFIG_BYTES)]
    for layer, bound in zip(layers, most, strict=False):
        notes = layer.get("annotations") if isinstance(layer, dict) else None
        title = printable(str(notes.get(TITLE) if isinstance(notes, dict) else "disk"))
        blobs.append(read_blob(layer, title, bound))
    return RemoteImage(reference, manifest, tuple(blobs))


def configuration(image: RemoteImage, skopeo: Skopeo) -> DomainConfig:
    """That of ``image``, and nothing else of it. Raises ``RegistryError``, ``ImageError``, ``ConfigError``."""
    wanted = image.blobs[0]
    content = skopeo.config(str(image.exactly))
    if len(content) != wanted.size or hashlib.sha256(content).hexdigest() != wanted.digest:
        raise ImageError(f"{image.reference}: its configuration has not its digest", hint="do not use this registry")
    return DomainConfig.parse(content)


def read_blob(descriptor: Any, title: str, most: int) -> Blob:
    """What ``descriptor``, anybody's, states of the blob that errors call ``title``, of at most ``most`` bytes. Raises
    ``ImageError``."""
    match = _DIGEST.fullmatch(str(descriptor.get("digest"))) if isinstance(descriptor, dict) else None
    if match is None or type(descriptor.get("size")) is not int:
        raise ImageError(f"the manifest says no digest and size of the {title}", hint="push it again")
    if not 0 <= descriptor["size"] <= most:
        raise ImageError(f"the manifest states {descriptor['size']} bytes of {title}", hint=f"at most {most}")
    return Blob(title, match[1], descriptor["size"])
