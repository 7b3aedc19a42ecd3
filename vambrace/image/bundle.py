"""One file for a whole Realm: an OCI image layout in a tar (docs/architecture.md, section 12).

    oci-layout, index.json      the layout; the index names the image's manifest, and perhaps its signature's
    blobs/sha256/<digest>       manifest, configuration (DomainConfig bytes), kernel, initrd, disks

A signature is an artifact of its own that refers to the image, as OCI 1.1 has it: it leaves the image's digest alone.

A bundle is hostile until ``Bundle.open`` returns: sizes are bounded, every digest is checked, and the disks
are those that the configuration names. Contents are hashed again whenever they are read: the file may have
changed. So ``Bundle.read`` leaves those of kernel, initrd and disks to whoever reads them anyhow.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from vambrace.canonical import canonical, decode_json
from vambrace.config import MAX_CONFIG_BYTES, MAX_DISKS, SYSTEM_DISK, VM, Disk, DomainConfig
from vambrace.errors import BuildError, ConfigError, ImageError, NoSpace
from vambrace.image import ustar
from vambrace.image.oci import BLOBS, EMPTY, LAYOUT, MANIFEST, TITLE, Blob, descriptor, index_of, write_layout
from vambrace.image.ustar import BUILD_AGAIN

ARTIFACT: Final = "application/vnd.vambrace.domain.v1"
CONFIG: Final = "application/vnd.vambrace.domain.config.v1+json"
KERNEL: Final = "application/vnd.vambrace.domain.kernel.v1"
INITRD: Final = "application/vnd.vambrace.domain.initrd.v1"
DISK: Final = "application/vnd.vambrace.domain.disk.v1+erofs"
PLAIN_DISK: Final = "application/vnd.vambrace.domain.disk.v1"
SIGNATURE: Final = "application/vnd.vambrace.domain.signature.v1+cose"

MAX_KERNEL: Final = 256 << 20
MAX_INITRD: Final = 1 << 30
MAX_SIGNATURE: Final = 4096
_MAX_JSON: Final = 64 << 10
MAX_MEMBERS: Final = 2 + 2 + 2 + MAX_DISKS + 3
_CHUNK: Final = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Part:
    """A blob inside the bundle at ``path``: ``offset`` and ``size`` in bytes, ``digest`` SHA-256 in hex."""

    path: Path
    title: str
    digest: str
    offset: int
    size: int

    @property
    def blob(self) -> Blob:
        return Blob(self.digest, self.size, self.copy)

    def read(self) -> bytes:
        """The contents. Raises ``ImageError`` if they no longer have the digest."""
        out = io.BytesIO()
        self.copy(out)
        return out.getvalue()

    def copy(self, out: BinaryIO | None) -> None:
        """Write the contents to ``out`` (None: only check). Raises ``ImageError`` as ``read`` does."""
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
        if digest.hexdigest() != self.digest:
            raise ImageError(f"the bundle's {self.title} does not have its digest", hint="build or send it again")

    def _chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.size
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise ImageError("the bundle is cut off", hint="build or send it again")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class UnpackedBundle:
    """Files that hold the parts of a bundle; the disks in order."""

    config_path: Path
    kernel_path: Path
    initrd_path: Path
    disk_paths: tuple[Path, ...]
    signature_path: Path | None


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. ``manifest_digest`` is the OCI digest (hex) that a registry would know it by."""

    path: Path
    manifest_digest: str
    config: DomainConfig
    config_part: Part
    kernel: Part
    initrd: Part
    disks: tuple[Part, ...]
    signature: Part | None = None

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read and check the bundle at ``path``. Raises ``ImageError``, ``ConfigError``."""
        bundle = cls.read(path)
        for part in bundle.parts:
            part.copy(None)
        return bundle

    @classmethod
    def read(cls, path: Path | str) -> Bundle:
        """As ``open``, for who reads kernel, initrd and disks anyhow: they are checked when they are."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                members = ustar.read_members(file, most=MAX_MEMBERS)
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}", hint="give the file of 'image build'") from None
        return _Reader(path, members).bundle()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Kernel, initrd, and the disks in order."""
        return (self.kernel, self.initrd, *self.disks)

    def unpack(self, directory: Path) -> UnpackedBundle:
        """Write every part to a file of its own in ``directory``, which must exist. Raises ``ImageError``."""
        names = ["config.json", "kernel", "initrd", *(f"disk-{i}" for i in range(len(self.disks)))]
        parts = [self.config_part, *self.parts]
        if self.signature:
            names.append("signature")
            parts.append(self.signature)
        paths = []
        for name, part in zip(names, parts, strict=True):
            target = directory / name
            with target.open("xb") as out:
                part.copy(out)
            paths.append(target)
        disks = tuple(paths[3 : 3 + len(self.disks)])
        return UnpackedBundle(paths[0], paths[1], paths[2], disks, paths[-1] if self.signature else None)

    def measurement(self) -> bytes:
        """The launch measurement that a monitor must report for this bundle. Raises ``ConfigError``."""
        from vambrace.machine.plan import plan_boot
        from vambrace.measure import measure_launch

        return measure_launch(self.config, plan_boot(self.config, self.kernel.read(), self.initrd.read()))

    def inspect(self) -> dict[str, Any]:
        """What is in the bundle, as JSON-ready values."""
        config, kind = self.config.as_object(), self.config.kind
        config.pop("owner", None)
        return {
            "name": self.config.name,
            "class": kind.name,
            "digest": self.manifest_digest,
            "measurement": self.measurement().hex() if kind.measured else None,
            "personalization": self.config.personalization().hex() if kind.attested else None,
            "signed": self.signature is not None,
            "parts": [
                {"title": part.title, "sha256": part.digest, "size": part.size}
                for part in (self.config_part, *self.parts)
            ],
            "config": config,
        }


def sign_bundle(bundle: Bundle, signature: bytes, out: Path) -> Bundle:
    """The same image with ``signature`` beside it, in the place of any that was there. Raises as ``write_bundle`` and
    ``check_output``."""
    check_output(out)
    return write_bundle(out, bundle.config, bundle.kernel, bundle.initrd, bundle.disks, signature)


def check_output(out: Path) -> None:
    """That a bundle may be written to ``out``: its folder is there, and nothing but a file would be replaced, no device
    such as /dev/null. Raises ``BuildError``."""
    if not out.parent.is_dir():
        raise BuildError(f"{out.parent} is not a folder", hint="make it, or choose another --output")
    if out.exists() and not out.is_file():
        what = "a folder" if out.is_dir() else "no regular file"
        raise BuildError(f"{out} is {what}", hint="choose another --output")


def write_bundle(
    out: Path,
    config: DomainConfig,
    kernel: Path | Part,
    initrd: Path | Part,
    disks: Sequence[Path | Part],
    signature: bytes | None = None,
) -> Bundle:
    """Pack the parts into the bundle ``out`` (replaced whole or not at all) and return it opened.

    The same parts give the same bytes. Raises ``ImageError`` where they contradict ``config``, ``NoSpace``.
    """
    blobs: list[Blob] = []
    manifests = [_put_image(blobs, config, kernel, initrd, disks)]
    if signature is not None:
        manifests.append(_put_signature(blobs, signature, manifests[0]))
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            write_layout(file, index_of(manifests), blobs)
        Bundle.open(temporary)
        temporary.rename(out)
    except OSError as error:
        hint = "choose another place with --output"
        if error.errno == errno.ENOSPC:
            raise NoSpace(str(out.parent), "the image", hint=f"free some, or {hint}") from None
        raise ImageError(f"{out}: {error.strerror}", hint=hint) from None
    finally:
        temporary.unlink(missing_ok=True)
    return Bundle.read(out)


def _kind(config: DomainConfig, disk: Disk) -> str:
    """The media type of a disk: the system of a user's disk has whatever file system it has."""
    return PLAIN_DISK if disk.plain or (config.form == VM and disk.name == SYSTEM_DISK) else DISK


def _put_image(
    blobs: list[Blob], config: DomainConfig, kernel: Path | Part, initrd: Path | Part, disks: Sequence[Path | Part]
) -> dict[str, Any]:
    """Put all of an image into ``blobs``; the descriptor of its manifest."""
    described = _put(blobs, CONFIG, config.encode())
    layers = [(KERNEL, kernel, "kernel"), (INITRD, initrd, "initrd")]
    for disk, content in zip(config.disks, disks, strict=True):
        kind = _kind(config, disk)
        layers.append((kind, content, f"{disk.name}.erofs" if kind == DISK else disk.name))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": described,
        "layers": [_put(blobs, kind, content) | {"annotations": {TITLE: title}} for kind, content, title in layers],
    }
    return _put(blobs, MANIFEST, canonical(manifest)) | {"artifactType": ARTIFACT}


def _put_signature(blobs: list[Blob], signature: bytes, image: dict[str, Any]) -> dict[str, Any]:
    """Put the artifact that refers to ``image`` into ``blobs``; the descriptor of its manifest."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SIGNATURE,
        "config": _put(blobs, EMPTY, b"{}"),
        "layers": [_put(blobs, SIGNATURE, signature)],
        "subject": {key: image[key] for key in ("mediaType", "digest", "size")},
    }
    return _put(blobs, MANIFEST, canonical(manifest)) | {"artifactType": SIGNATURE}


def _put(blobs: list[Blob], kind: str, content: bytes | Path | Part) -> dict[str, Any]:
    """Put one blob into ``blobs``; its descriptor."""
    if isinstance(content, Path):
        try:
            size = content.stat().st_size
            with content.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImageError(f"{content}: {error.strerror}", hint=BUILD_AGAIN) from None
        content = Part(content, content.name, digest, 0, size)
    blobs.append(Blob.of(content) if isinstance(content, bytes) else content.blob)
    return descriptor(kind, blobs[-1].digest, blobs[-1].size)


class _Reader:
    """Follows index → manifest → parts through ``members``, believing nothing."""

    def __init__(self, path: Path, members: dict[str, tuple[int, int]]) -> None:
        self._path = path
        self._members = members
        self._used = {"oci-layout", "index.json"}

    def bundle(self) -> Bundle:
        if self._object(self._member("oci-layout", "layout"), _MAX_JSON) != LAYOUT:
            raise ImageError("the bundle is no OCI image layout of version 1.0.0", hint=BUILD_AGAIN)
        index = self._object(self._member("index.json", "index"), _MAX_JSON)
        manifests = index.get("manifests")
        if not isinstance(manifests, list) or not 1 <= len(manifests) <= 2:
            raise ImageError("the bundle must hold exactly one image, and at most one signature", hint=BUILD_AGAIN)
        manifest_part = self._blob(manifests[0], MANIFEST, _MAX_JSON, "manifest")
        manifest = self._object(manifest_part, _MAX_JSON)
        if manifest.get("artifactType") != ARTIFACT or manifest.get("schemaVersion") != 2:
            raise ImageError("the image is not one of vambrace's", hint=f"its artifactType must be {ARTIFACT}")
        config_part = self._blob(manifest.get("config"), CONFIG, MAX_CONFIG_BYTES, "configuration")
        config = DomainConfig.parse(config_part.read())
        layers = manifest.get("layers")
        if not isinstance(layers, list) or len(layers) != 2 + len(config.disks):
            raise ImageError(
                "the image must hold a kernel, an initrd and the disks of its configuration", hint=BUILD_AGAIN
            )
        kernel = self._blob(layers[0], KERNEL, MAX_KERNEL, "kernel")
        initrd = self._blob(layers[1], INITRD, MAX_INITRD, "initrd")
        disks = []
        for disk, layer in zip(config.disks, layers[2:], strict=True):
            part = self._blob(layer, _kind(config, disk), disk.size, f"disk {disk.name}")
            if part.digest != disk.sha256 or part.size != disk.size:
                raise ImageError(f"disk {disk.name} is not the one of the configuration", hint="build it again")
            disks.append(part)
        signature = self._signature(manifests[1], manifest_part) if len(manifests) == 2 else None
        if self._used != set(self._members):
            raise ImageError("the bundle holds files that nothing refers to", hint=BUILD_AGAIN)
        return Bundle(self._path, manifest_part.digest, config, config_part, kernel, initrd, tuple(disks), signature)

    def _signature(self, descriptor: Any, image: Part) -> Part:
        """The one signature, which must refer to this image; whose it is, nobody knows here."""
        manifest = self._object(self._blob(descriptor, MANIFEST, _MAX_JSON, "signature's manifest"), _MAX_JSON)
        layers, subject = manifest.get("layers"), manifest.get("subject")
        if manifest.get("artifactType") != SIGNATURE or not isinstance(layers, list) or len(layers) != 1:
            raise ImageError("the bundle's second artifact is no signature", hint="sign the image again")
        if not isinstance(subject, dict) or subject.get("digest") != f"sha256:{image.digest}":
            raise ImageError("the bundle's signature refers to another image", hint="sign the image again")
        if self._object(self._blob(manifest.get("config"), EMPTY, 2, "signature's configuration"), 2) != {}:
            raise ImageError("the bundle's signature has a configuration", hint="sign the image again")
        part = self._blob(layers[0], SIGNATURE, MAX_SIGNATURE, "signature")
        part.copy(None)
        return part

    def _member(self, name: str, title: str) -> Part:
        if name not in self._members:
            raise ImageError(f"the bundle has no {title}", hint="give the file of 'image build'")
        offset, size = self._members[name]
        return Part(self._path, title, "", offset, size)

    def _blob(self, descriptor: Any, kind: str, most: int, title: str) -> Part:
        if not isinstance(descriptor, dict) or descriptor.get("mediaType") != kind:
            raise ImageError(f"the bundle's {title} must be of type {kind}", hint=BUILD_AGAIN)
        match = _DIGEST.fullmatch(str(descriptor.get("digest")))
        if match is None:
            raise ImageError(f"the bundle's {title} has no SHA-256 digest", hint=BUILD_AGAIN)
        name = f"{BLOBS}/{match[1]}"
        part = self._member(name, title)
        if type(descriptor.get("size")) is not int or descriptor["size"] != part.size:
            raise ImageError(f"the bundle's {title} does not have its stated size", hint="send it again")
        if part.size > most:
            raise ImageError(f"the bundle's {title} is larger than {most} bytes", hint=BUILD_AGAIN)
        if name in self._used:
            # Each part is unpacked by itself: a small upload must not become a large image.
            raise ImageError(f"the bundle's {title} is also another part of it", hint=BUILD_AGAIN)
        self._used.add(name)
        return Part(self._path, title, match[1], part.offset, part.size)

    def _object(self, part: Part, most: int) -> dict[str, Any]:
        if part.size > most:
            raise ImageError(f"the bundle's {part.title} is larger than {most} bytes", hint=BUILD_AGAIN)
        with self._path.open("rb") as file:
            file.seek(part.offset)
            data = file.read(part.size)
        if part.digest and hashlib.sha256(data).hexdigest() != part.digest:
            raise ImageError(f"the bundle's {part.title} does not have its digest", hint="send it again")
        try:
            value = decode_json(data)
        except ConfigError:
            raise ImageError(f"the bundle's {part.title} is not JSON", hint=BUILD_AGAIN) from None
        if not isinstance(value, dict):
            raise ImageError(f"the bundle's {part.title} is not a JSON object", hint=BUILD_AGAIN)
        return value
