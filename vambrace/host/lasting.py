"""Volumes: disks that outlive their domains, each its owner's, sparse files on the state disk.

    lasting/<owner>/<name>.disk     <owner> is the personalization value of its Realms, in hexadecimal

The host keeps them and knows nothing of what is in them (docs/volumes.md). A volume may grow to its full size: so much
is set aside for it from its making to its removal. It is one living domain's at a time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vambrace.checks import check_name
from vambrace.errors import CapacityError, ConfigError, Conflict, NotFound, UsageError
from vambrace.files import sync
from vambrace.host.volumes import allocated, make_sparse
from vambrace.storage import check_disk_size

SUFFIX = ".disk"
MOST_OF_OWNER = 64
_OWNER = re.compile("[0-9a-f]{128}")


class Wanted(Protocol):
    """A volume as a configuration has it."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class LastingVolume:
    """``size`` is what its owner has, ``taken`` what it takes on the host, in bytes; ``domain`` whose it is now, if
    any."""

    owner: str
    name: str
    size: int
    taken: int
    changed: float
    domain: str | None


class Lasting:
    """Of one host; ``free`` says how many bytes may still be promised."""

    def __init__(self, directory: Path, free: Callable[[], int]) -> None:
        self._directory = directory
        self._free = free
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._users: dict[tuple[str, str], str] = {}  # uuids by owner and name

    @property
    def outstanding(self) -> int:
        """Bytes that are promised and not on the disk yet."""
        return sum(max(0, volume.size - volume.taken) for volume in self.volumes())

    def volumes(self) -> list[LastingVolume]:
        """All of them, by owner and name."""
        return list(self._look())

    def create(self, owner: str, name: str, size: int) -> LastingVolume:
        """A new one, or the one that is there if it has this ``size``. Raises ``UsageError`` (name, size), ``Conflict``
        (another size), ``CapacityError``."""
        try:
            check_name(name, "volume")
            check_disk_size(size, f"volume {name}")
        except ConfigError as error:
            raise UsageError(error.message, hint=error.hint) from None
        if not _OWNER.fullmatch(owner):
            raise UsageError("owner: 128 hexadecimal digits are expected", hint="a personalization value")
        if self._fits(owner, name, size):
            self._check_room(owner, [size])
            self._make(owner, name, size)
        return self.volume(owner, name)

    def volume(self, owner: str, name: str) -> LastingVolume:
        """Raises ``NotFound``."""
        for volume in self._look():
            if (volume.owner, volume.name) == (owner, name):
                return volume
        raise NotFound(f"no volume {name[:40]} of this owner")

    def remove(self, owner: str, name: str) -> None:
        """For ever. Raises ``NotFound``, ``Conflict`` (a living domain has it)."""
        volume = self.volume(owner, name)
        if volume.domain is not None:
            raise Conflict(f"domain {volume.domain} has the volume {name}", hint="destroy it first", status=409)
        path = self.path(owner, name)
        path.unlink()
        sync(path.parent)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def attach(self, uuid: str, owner: str, wanted: Sequence[Wanted]) -> None:
        """Give a domain of ``owner`` all that it ``wants``, made where there is none of that name; or nothing.

        Raises ``Conflict``: another domain has one, or it has another size; ``CapacityError``.
        """
        new = []
        for one in wanted:
            user = self._users.get((owner, one.name))
            if user is not None:
                raise Conflict(
                    f"the volume {one.name} is in use by domain {user}", hint="one domain has it at a time", status=409
                )
            if self._fits(owner, one.name, one.size):
                new.append(one)
        self._check_room(owner, [one.size for one in new])
        for one in new:
            self._make(owner, one.name, one.size)
        self._users |= {(owner, one.name): uuid for one in wanted}

    def release(self, uuid: str) -> None:
        """The domain has ended, and its VMM is gone; twice does no harm."""
        self._users = {volume: user for volume, user in self._users.items() if user != uuid}

    def path(self, owner: str, name: str) -> Path:
        return self._directory / owner / f"{name}{SUFFIX}"

    def _fits(self, owner: str, name: str, size: int) -> bool:
        """Whether it is to be made. Raises ``Conflict``: it is there and has another size."""
        try:
            found = self.path(owner, name).stat().st_size
        except FileNotFoundError:
            return True
        if found != size:
            raise Conflict(
                f"the volume {name} has {found >> 20} MiB, and {size >> 20} MiB are asked for",
                hint="the image must say the size that it has",
                status=409,
            )
        return False

    def _check_room(self, owner: str, sizes: Sequence[int]) -> None:
        """Whether volumes of these ``sizes`` may be made, all of them. Raises ``CapacityError``."""
        if not sizes:
            return
        needed, free = sum(sizes), self._free()
        if needed > free:
            raise CapacityError(
                f"no space on the host for {-(-needed >> 20)} MiB of volumes: {free >> 20} MiB are free",
                hint="remove volumes or images that nobody needs any more",
            )
        count = sum(volume.owner == owner for volume in self._look())
        if count + len(sizes) > MOST_OF_OWNER:
            raise CapacityError(
                f"this owner has {count} volumes, of at most {MOST_OF_OWNER}", hint="remove one: vambrace volume remove"
            )

    def _make(self, owner: str, name: str, size: int) -> None:
        path = self.path(owner, name)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            make_sparse(path, size)
            sync(path.parent)
            sync(self._directory)
        except OSError as error:
            raise CapacityError(
                f"the volume {name} cannot be made: {error.strerror}", hint="look at the host's state disk"
            ) from error

    def _look(self) -> Iterator[LastingVolume]:
        for folder in sorted(self._directory.iterdir()):
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                owner, name = folder.name, path.name.removesuffix(SUFFIX)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    status = path.stat()
                    taken = allocated(path)
                    yield LastingVolume(
                        owner, name, status.st_size, taken, status.st_mtime, self._users.get((owner, name))
                    )
