"""The state directory: unpacked images by digest, and one small JSON record for each domain. No secrets.

    images/<sha256>/          the parts of a bundle, and image.json
    domains/<uuid>.json        a DomainRecord
    volumes/                  disks that living domains write to; emptied at start
    lasting/                  volumes, which outlive their domains
    tmp/                      uploads under way; emptied at start

Everything is written aside, synced and renamed, so that a power cut leaves the old or the new.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vambrace.classes import REALM, domain_class
from vambrace.config import DomainConfig
from vambrace.errors import CapacityError, ConfigError, ImageError, NotFound
from vambrace.files import sync, write_whole
from vambrace.host.lasting import Lasting
from vambrace.host.lifecycle import State
from vambrace.host.volumes import Volumes
from vambrace.image import Bundle

RECORDS_KEPT = 200
SPARE = 64 << 20
DAMAGED = ".damaged"
WHOLE = "send the whole bundle"

log = logging.getLogger(__name__)


@dataclass
class DomainRecord:
    """What outlives the daemon. ``counter`` is the last one used by an owner's message, -1 for none."""

    uuid: str
    name: str
    image: str
    nonce: str
    created: float
    kind: str = REALM.name
    state: str = State.CREATED.value
    reason: str = ""
    executed: bool = False
    instance: str = ""
    measurement: str = ""
    memory: int = 0
    counter: int = -1
    agent: str = ""
    vmm_pid: int = 0
    vmm_started: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("uuid", "name", "kind", "image", "nonce", "state", "reason", "instance"), (str,)),
    **dict.fromkeys(("measurement", "agent"), (str,)),
    **dict.fromkeys(("memory", "counter", "vmm_pid", "vmm_started"), (int,)),
    "created": (int, float),
    "executed": (bool,),
    "events": (list,),
}


@dataclass(frozen=True)
class StoredImage:
    """An unpacked bundle. ``size`` is that of the uploaded tar in bytes, ``disks`` are in order.

    ``blobs`` are kernel, initrd and disks by their SHA-256 (hexadecimal).
    """

    digest: str
    name: str
    size: int
    stored: float
    config: Path
    kernel: Path
    initrd: Path
    disks: tuple[Path, ...]
    signature: Path | None = None
    blobs: Mapping[str, Path] = field(default_factory=dict)

    def read_signature(self) -> bytes | None:
        return self.signature.read_bytes() if self.signature else None

    def read_config(self) -> DomainConfig:
        return DomainConfig.parse(self.config.read_bytes())


class Store:
    """Raises ``CapacityError`` without space, ``ImageError`` for a broken bundle, ``NotFound``."""

    def __init__(self, directory: Path) -> None:
        self.images = directory / "images"
        self.domains = directory / "domains"
        self.temporary = directory / "tmp"
        self.volumes = Volumes(directory / "volumes")
        self.lasting = Lasting(directory / "lasting", self.free)
        self._blobs: dict[str, Mapping[str, Path]] = {}
        for path in (directory, self.images, self.domains, self.temporary):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    # Start

    def recover(self) -> list[DomainRecord]:
        """Clear what a stopped daemon left; returns every record, those not final now ``failed``.

        The VMM processes that the records name must be ended by the caller first (``records``).
        """
        for path in self.temporary.iterdir():
            _remove(path)
        for path in self.domains.iterdir():
            if path.suffix not in (".json", DAMAGED):
                _remove(path)
        records = self.records()
        for record in records:
            if not State(record.state).final:
                record.state = State.FAILED.value
                record.reason = "host restarted"
                record.vmm_pid = record.vmm_started = 0
                record.events.append({"name": State.FAILED.value, "step": 406, "at": time.time()})
                try:
                    self.save(record)
                except CapacityError as error:
                    # It is known as failed in memory, and the next start tries again.
                    log.error("domain %s: %s", record.uuid, error.message)
        return records

    # Domains

    def records(self) -> list[DomainRecord]:
        """Every readable record, oldest first. One that is damaged is put aside, not trusted."""
        records = []
        for path in sorted(self.domains.glob("*.json")):
            try:
                record = _decode_record(path.read_bytes())
                if record.uuid != path.stem:
                    raise ValueError("the record is another domain's")
            except (OSError, ValueError, TypeError, RecursionError, ConfigError) as error:
                log.error("%s is damaged and put aside: %s", path, error)
                path.replace(path.with_suffix(DAMAGED))
                continue
            records.append(record)
        return sorted(records, key=lambda record: record.created)

    def save(self, record: DomainRecord) -> None:
        """Raises ``CapacityError`` where the disk does not take it; the record that was there stays."""
        try:
            write_whole(self.domains / f"{record.uuid}.json", json.dumps(dataclasses.asdict(record)).encode())
        except OSError as error:
            raise CapacityError(
                f"the record of the domain cannot be written: {error.strerror}", hint="look at the host's state disk"
            ) from error

    def forget(self, uuid: str) -> None:
        (self.domains / f"{uuid}.json").unlink(missing_ok=True)

    # Images

    def free(self) -> int:
        """Bytes that may still be written."""
        outstanding = self.volumes.outstanding + self.lasting.outstanding
        status = os.statvfs(self.images)
        return max(0, status.f_bavail * status.f_frsize - SPARE - outstanding)

    def require_space(self, size: int) -> None:
        if size > self.free():
            raise CapacityError(
                f"no space on the host for {-(-size >> 20)} MiB",
                hint="delete images that nobody needs any more with DELETE /v1/images/{sha256}",
            )

    def new_upload(self) -> IO[bytes]:
        """A new empty file with a name, which is gone when it is closed."""
        return tempfile.NamedTemporaryFile(dir=self.temporary)

    def add_image(self, digest: str, upload: Path) -> StoredImage:
        """Check the bundle in ``upload`` (whose digest the caller has checked), unpack and store it."""
        size = upload.stat().st_size
        self.require_space(size)
        directory = Path(tempfile.mkdtemp(dir=self.temporary))
        try:
            bundle = Bundle.read(upload)
            parts = bundle.unpack(directory)
            blobs = zip(bundle.parts, (parts.kernel_path, parts.initrd_path, *parts.disk_paths), strict=True)
            description = {
                "name": bundle.config.name,
                "size": size,
                "stored": time.time(),
                "config": _inside(parts.config_path, directory),
                "kernel": _inside(parts.kernel_path, directory),
                "initrd": _inside(parts.initrd_path, directory),
                "disks": [_inside(path, directory) for path in parts.disk_paths],
                "signature": _inside(parts.signature_path, directory) if parts.signature_path else None,
                "blobs": {part.digest: _inside(path, directory) for part, path in blobs},
            }
            for path in directory.rglob("*"):
                if path.is_file():
                    sync(path)
            write_whole(directory / "image.json", json.dumps(description).encode())
            with contextlib.suppress(FileExistsError):
                # Two uploads of the same image: the first one stays.
                if not (self.images / digest).exists():
                    directory.rename(self.images / digest)
            sync(self.images)
        except OSError as error:
            raise CapacityError(
                f"the image could not be stored: {error.strerror}", hint="look at the host's state disk"
            ) from error
        finally:
            _remove(directory)
        return self.image(digest)

    def has_image(self, digest: str) -> bool:
        return (self.images / digest / "image.json").is_file()

    def image(self, digest: str) -> StoredImage:
        directory = self.images / digest
        try:
            description = json.loads((directory / "image.json").read_bytes())
            return StoredImage(
                digest=digest,
                name=str(description["name"]),
                size=int(description["size"]),
                stored=float(description["stored"]),
                config=directory / description["config"],
                kernel=directory / description["kernel"],
                initrd=directory / description["initrd"],
                disks=tuple(directory / disk for disk in description["disks"]),
                signature=directory / description["signature"] if description["signature"] else None,
                blobs={digest: directory / name for digest, name in description.get("blobs", {}).items()},
            )
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no image {digest}", hint="send it with PUT /v1/images/{sha256}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ImageError(f"the stored image {digest} is damaged", hint="delete it, send it again") from error

    def list_images(self) -> list[StoredImage]:
        images = []
        for path in sorted(self.images.iterdir()):
            with contextlib.suppress(NotFound):  # gone meanwhile, or no image
                images.append(self.image(path.name))
        return images

    def blob(self, digest: str) -> Path:
        """The kernel, initrd or disk with this SHA-256 (hexadecimal), of any image. Raises ``NotFound``."""
        for image in self.images.iterdir():
            path = self._blobs_of(image.name).get(digest)
            if path and path.is_file():
                return path
        raise no_blob(digest)

    def _blobs_of(self, name: str) -> Mapping[str, Path]:
        """Those of an image, always the same: many ask for blobs, and each image's description is read once."""
        blobs = self._blobs.get(name)
        if blobs is None:
            try:
                blobs = self._blobs[name] = self.image(name).blobs
            except (NotFound, ImageError):  # gone meanwhile, or damaged
                blobs = {}
        return blobs

    def delete_image(self, digest: str) -> None:
        if not self.has_image(digest):
            raise NotFound(f"no image {digest}")
        # Out of sight in one step, then removed at leisure.
        aside = Path(tempfile.mkdtemp(dir=self.temporary))
        (self.images / digest).rename(aside / digest)
        self._blobs.pop(digest, None)
        _remove(aside)


def no_blob(digest: str) -> NotFound:
    return NotFound(f"no image here has the blob {digest}", hint=WHOLE)


def _decode_record(data: bytes) -> DomainRecord:
    """Raises ``ValueError``, ``TypeError`` or ``ConfigError`` for anything but what ``Store.save`` writes."""
    record = DomainRecord(**json.loads(data))
    for name, kinds in _FIELD_TYPES.items():
        # Not isinstance: true is no number.
        if type(getattr(record, name)) not in kinds:
            raise TypeError(f"{name} has a wrong type")
    if not math.isfinite(record.created):
        raise ValueError("created is not a time")
    for event in record.events:
        if not isinstance(event, dict) or [type(event.get(key)) for key in ("name", "step")] != [str, int]:
            raise TypeError("events has a wrong type")
        if type(event.get("at")) not in (int, float) or not math.isfinite(event["at"]):
            raise TypeError("events has a wrong type")
    State(record.state)
    domain_class(record.kind)
    return record


def _inside(path: Path, directory: Path) -> str:
    return str(path.relative_to(directory))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
