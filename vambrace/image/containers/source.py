"""Where an image comes from: skopeo copies it, this module reads what it copied.

skopeo knows registries, archives and layouts, picks the platform from an index, and compares digests as it copies. All
of them are compared here once more: of what this module gives, each part is what the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from vambrace.errors import ConfigError, ImageError, NoSpace, RegistryError
from vambrace.image import foreign
from vambrace.image.containers import tar
from vambrace.image.oci import IMAGE_CONFIG, MANIFEST
from vambrace.image.skopeo import Skopeo

ARCHITECTURE: Final = "arm64"
MAX_JSON: Final = 4 << 20  # bytes of a manifest or configuration
MAX_LAYERS: Final = 256
MAX_BLOB: Final = 16 << 30
MAX_BLOBS: Final = 32 << 30  # of all together
MAX_CANDIDATES: Final = 16  # of an index, for one platform
MAX_ARCHIVE: Final = 10_000  # members of an archive that are looked at to tell what it is
_SECONDS: Final = 3600  # for the whole copy
_TRANSPORTS: Final = ("oci:", "oci-archive:", "docker-archive:", "docker://", "dir:")
_MANIFESTS: Final = (
    MANIFEST,
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIGS: Final = (
    IMAGE_CONFIG,
    "application/vnd.docker.container.image.v1+json",
)
_LAYERS: Final = re.compile(
    r"application/vnd\.(oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?)"
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_AGAIN: Final = "save or push the image again"


@dataclass(frozen=True)
class Source:
    """An image on this machine: its configuration, decoded and not yet judged, and the blobs of its layers, each with
    the digest (``sha256:…``) of what it unpacks to."""

    config: dict[str, Any]
    layers: tuple[tuple[Path, str], ...]


def reference(text: str, folder: Path) -> str:
    """``text`` as skopeo wants it: paths relative to ``folder``, and of a plain path what is there.

    Raises ``ConfigError``.
    """
    transport = next((known for known in _TRANSPORTS if text.startswith(known)), "")
    if transport == "docker://":
        return text
    rest = text[len(transport) :]
    if not transport:
        if not (folder / rest).exists() or "\0" in rest:
            raise ConfigError(
                f"container {rest[:200]!r}: no such file or folder",
                hint=f"a file of 'docker save' or 'skopeo copy', a folder, or one of {' '.join(_TRANSPORTS)}",
            )
        transport = _recognise(folder / rest)
    path, colon, tag = rest.partition(":") if transport != "dir:" else (rest, "", "")
    if not (folder / path).exists():
        raise ConfigError(f"container {path[:200]!r}: no such file or folder", hint="see docs/containers.md")
    return f"{transport}{(folder / path).resolve()}{colon}{tag}"


def _recognise(path: Path) -> str:
    """The transport of an archive or folder."""
    if path.is_dir() and (path / "oci-layout").is_file():
        return "oci:"
    if path.is_dir() and (path / "manifest.json").is_file():
        return "dir:"
    if path.is_dir():
        hint = "a folder has an OCI layout, or is of 'skopeo copy … dir:FOLDER'"
        raise ConfigError(f"{path} is no container image", hint=hint)
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                return "docker-archive:"  # 'docker save | gzip'
            names = {member.name.removeprefix(b"./") for member in islice(tar.read_members(file), MAX_ARCHIVE)}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="look at this file and its permissions") from None
    except ImageError:
        names = set()
    # 'docker save' writes both; its own file knows the image's name.
    if b"manifest.json" in names:
        return "docker-archive:"
    if b"oci-layout" in names:
        return "oci-archive:"
    raise ConfigError(f"{path} is no container image", hint="a file of 'docker save', 'podman save' or 'skopeo copy'")


def fetch(source: str, work: Path) -> Source:
    """Copy the image ``source`` (see ``reference``), of an index the one for arm64, into the new folder ``work``.

    Raises ``BuildError`` where skopeo cannot (``RegistryError``, ``NoSpace``), ``ImageError`` for what is not an image
    that can be run.
    """
    skopeo = Skopeo()
    stated: dict[str, int] = {}
    if source.startswith("docker://"):
        stated = look(source, skopeo)
        total = max(stated.values())
        if total > shutil.disk_usage(work).free:
            raise NoSpace(str(work), f"an image of {total >> 20} MiB", hint="free some")
    else:
        foreign.check_local(source)
        total = 2 * MAX_BLOBS  # an archive is unpacked first
    skopeo.obtain(source, work, architecture=ARCHITECTURE, largest=MAX_BLOB, total=total, seconds=_SECONDS)
    found = read(work)
    if stated and hashlib.sha256((work / "manifest.json").read_bytes()).hexdigest() not in stated:
        raise ImageError(f"{source}: the registry gives another image than a moment ago", hint="try again")
    return found


def look(source: str, skopeo: Skopeo) -> dict[str, int]:
    """The manifests that the reference ``source`` to a registry may come to, by their SHA-256, and the bytes of all
    that each names: looked at before anything of them is fetched. Raises ``RegistryError``, ``ImageError``."""
    raw = _manifest(source, skopeo)
    top = foreign.read_manifest(raw, source)
    found = [raw]
    if "manifests" in top:
        digests = list(dict.fromkeys(_candidates(top, source)))
        if not 0 < len(digests) <= MAX_CANDIDATES:
            raise ImageError(f"{source}: {len(digests)} images for linux/{ARCHITECTURE}", hint="name one by its digest")
        name = source.partition("@")[0]
        name = name if ":" not in name.rpartition("/")[2] else name.rpartition(":")[0]
        found = [_manifest(f"{name}@{digest}", skopeo) for digest in digests]
        if any(f"sha256:{hashlib.sha256(each).hexdigest()}" not in digests for each in found):
            raise ImageError(f"{source}: the registry sent another manifest", hint="do not use this registry")
    sizes = {
        hashlib.sha256(each).hexdigest(): foreign.stated_size(foreign.read_manifest(each, source), source)
        for each in found
    }
    for size in sizes.values():
        if size > MAX_BLOBS:
            raise ImageError(f"{source}: an image of {size >> 20} MiB", hint=f"at most {MAX_BLOBS >> 20} MiB")
    return sizes


def _manifest(source: str, skopeo: Skopeo) -> bytes:
    raw = skopeo.manifest(source, MAX_JSON, options=False)
    if raw is None:
        raise RegistryError(f"{source}: the registry has no such image", hint="correct the reference")
    return raw


def _candidates(index: foreign.Manifest, source: str) -> Iterator[str]:
    """The digests of those that may be meant: all that are not plainly for another platform."""
    entries = index.get("manifests")
    for entry in entries if isinstance(entries, list) else []:
        digest = entry.get("digest") if isinstance(entry, dict) else None
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ImageError(f"{source}: its index has a damaged digest", hint=_AGAIN)
        platform = entry.get("platform")
        known = platform if isinstance(platform, dict) else {}
        if known.get("os", "linux") == "linux" and known.get("architecture", ARCHITECTURE) == ARCHITECTURE:
            yield digest


def read(folder: Path) -> Source:
    """The image in a ``folder`` that skopeo wrote (``dir:``), every digest compared. Raises ``ImageError``."""
    manifest = _json(folder / "manifest.json", "manifest")
    if manifest.get("mediaType", _MANIFESTS[0]) not in _MANIFESTS:
        raise ImageError("the image's manifest is of an unknown kind", hint="OCI or Docker schema 2 is needed")
    described = manifest.get("config")
    if not isinstance(described, dict) or described.get("mediaType") not in _CONFIGS:
        raise ImageError("this is no container image: its configuration is of another kind", hint=_AGAIN)
    config = _json(_blob(folder, described), "configuration")
    layers = manifest.get("layers")
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(layers, list) or not isinstance(diff_ids, list) or len(layers) != len(diff_ids):
        raise ImageError("the image's manifest and configuration do not agree on its layers", hint=_AGAIN)
    if len(layers) > MAX_LAYERS:
        raise ImageError(f"the image has {len(layers)} layers", hint=f"at most {MAX_LAYERS}")
    found = []
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        if not isinstance(layer, dict) or not _LAYERS.fullmatch(str(layer.get("mediaType"))):
            kind = str(layer.get("mediaType") if isinstance(layer, dict) else layer)[:80]
            raise ImageError(f"the image has a layer that cannot be read here: {kind!r}", hint="tar, gzip or zstd")
        if not isinstance(diff_id, str) or not _DIGEST.fullmatch(diff_id):
            raise ImageError("the image's configuration has a damaged diff_id", hint=_AGAIN)
        found.append((_blob(folder, layer), diff_id))
    return Source(config, tuple(found))


def _blob(folder: Path, described: dict[str, Any]) -> Path:
    digest = described.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ImageError("the image's manifest has a damaged digest", hint=_AGAIN)
    path = folder / digest.removeprefix("sha256:")
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ImageError(f"the image lacks the blob {digest}", hint=_AGAIN) from None
    if actual != path.name:
        raise ImageError(f"the image lies: the blob {digest} has another digest", hint=_AGAIN)
    return path


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise ImageError(f"the image's {what} has {size} bytes", hint=f"at most {MAX_JSON} are read")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ImageError(f"the image has no {what}", hint=_AGAIN) from None
    except (ValueError, RecursionError):
        raise ImageError(f"the image's {what} is not JSON, or too deep", hint=_AGAIN) from None
    if not isinstance(value, dict):
        raise ImageError(f"the image's {what} is no JSON object", hint=_AGAIN)
    return value
