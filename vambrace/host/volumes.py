"""Disks that domains write to, sparse, on the state disk, gone when their domain has ended: copies of an image's, and
scratch space. What outlives a domain is in ``vambrace/host/lasting.py``.

    volumes/<uuid>/<name>     one for each disk of a domain

A volume may grow to its full size, so that much is set aside for it when its domain is admitted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vambrace.errors import CapacityError

CHUNK = 1 << 20
BLOCK = 512  # what st_blocks counts


class Volumes:
    """What is there at the start is of an earlier run, and removed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        self._reserved: dict[str, int] = {}

    @property
    def outstanding(self) -> int:
        """Bytes that were set aside and are not on the disk yet."""
        return sum(max(0, size - self._allocated(uuid)) for uuid, size in tuple(self._reserved.items()))

    def reserve(self, uuid: str, size: int, free: int) -> None:
        """Set ``size`` bytes aside of the ``free`` ones. Raises ``CapacityError``: then nothing is."""
        if not size:
            return
        if size > free:
            raise CapacityError(
                f"no space on the host for {-(-size >> 20)} MiB of disks: {free >> 20} MiB are free",
                hint="delete images that nobody needs any more with DELETE /v1/images/{sha256}, or destroy a Normal VM",
            )
        self._reserved[uuid] = size

    def path(self, uuid: str, name: str) -> Path:
        return self._directory / uuid / name

    def create(self, uuid: str, name: str, source: Path, size: int) -> None:
        """Copy the image's disk ``source``; blocks of zeros take no space. Raises ``CapacityError``, also where nothing
        is set aside for the domain any more."""
        target = self.path(uuid, name)
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with source.open("rb") as file, target.open("xb") as out:
                os.fchmod(out.fileno(), 0o600)
                out.truncate(size)
                for offset, data in _chunks(file.fileno()):
                    if uuid not in self._reserved:
                        raise CapacityError("the domain ends while its disks are copied")
                    out.seek(offset)
                    out.write(data)  # all of it, or an error
        except OSError as error:
            raise CapacityError(
                f"the disk {name} cannot be copied: {error.strerror}", hint="look at the host's state disk"
            ) from error

    def create_empty(self, uuid: str, name: str, size: int) -> None:
        """Raises ``CapacityError``."""
        target = self.path(uuid, name)
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            make_sparse(target, size)
        except OSError as error:
            raise CapacityError(
                f"the disk {name} cannot be made: {error.strerror}", hint="look at the host's state disk"
            ) from error

    def stop(self, uuid: str) -> None:
        """The domain ends: what ``create`` does for it in another thread ends soon."""
        self._reserved.pop(uuid, None)

    def release(self, uuid: str) -> None:
        """The domain has ended: its disks go, and what was set aside is free. Twice does no harm."""
        shutil.rmtree(self._directory / uuid, ignore_errors=True)
        self._reserved.pop(uuid, None)

    def _allocated(self, uuid: str) -> int:
        total = 0
        # Its domain may end meanwhile, and its folder go.
        with contextlib.suppress(FileNotFoundError):
            for path in (self._directory / uuid).iterdir():
                total += allocated(path)
        return total


def make_sparse(path: Path, size: int) -> None:
    """A new file of zeros that takes no space. Raises ``OSError``."""
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)
        os.fsync(file.fileno())


def allocated(path: Path) -> int:
    """Bytes that a file takes. Raises ``OSError``."""
    return path.stat().st_blocks * BLOCK


def _chunks(file: int) -> Iterator[tuple[int, bytes]]:
    """What of a file is not zeros, with its offset."""
    zeros = bytes(CHUNK)
    offset = 0
    while data := os.pread(file, CHUNK, offset):
        if data != zeros[: len(data)]:
            yield offset, data
        offset += len(data)
