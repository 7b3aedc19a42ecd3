"""Results of a Realm, on the user's disk: safe names, resumed where they were cut, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.client.channel import OTHER_VERSION
from vambrace.client.progress import Progress, silent
from vambrace.errors import DomainError, UsageError

FOLDER = "/results/"


@dataclass(frozen=True)
class ResultFile:
    """One file: ``path`` is the guest's, ``size`` in bytes."""

    application: str
    path: str
    size: int

    @property
    def relative(self) -> Path:
        """``<application>/<path below its results folder>``; ``DomainError`` if that leaves the folder."""
        prefix = f"{FOLDER}{self.application}/"
        parts = self.path.removeprefix(prefix).split("/")
        names = [self.application, *parts]
        if not self.path.startswith(prefix) or not all(safe(name) for name in names):
            raise DomainError(
                f"the Realm names a result that is not safe: {self.path[:200]!r}",
                hint="correct the application's results in the manifest",
            )
        return Path(*names)

    @classmethod
    def decode(cls, value: Any) -> ResultFile:
        """Raises ``DomainError`` for what is no description of a result."""
        if isinstance(value, dict):
            application, path, size = (value.get(key) for key in ("application", "path", "size"))
            if isinstance(application, str) and isinstance(path, str) and type(size) is int and size >= 0:
                return cls(application, path, size)
        raise DomainError("the agent's list of results is damaged", hint=OTHER_VERSION)


Fetch = Callable[[str, str, int], tuple[int, bytes]]


def download(
    file: ResultFile, directory: Path, uuid: str, fetch: Fetch, limit: int, progress: Progress = silent
) -> Path:
    """Fetch one result below ``directory``; returns its path. It has at most ``limit`` bytes, or ``DomainError``.

    ``fetch(application, path, offset)`` gives the file's size and the bytes from there. What was fetched
    before, of the same Realm, is not fetched again.
    """
    relative = file.relative
    folder = _folder(directory, relative.parts[:-1])
    target = folder / relative.name
    if target.is_symlink() or target.is_dir():
        raise UsageError(f"{target} is in the way", hint="remove it, or name another directory")
    partial = folder / f".{uuid[:13]}.{relative.name}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, 0o600), "wb") as output:
            offset = os.fstat(output.fileno()).st_size
            if offset > file.size:
                output.truncate(0)
                offset = 0
            output.seek(offset)
            size = file.size
            while offset < size:
                if size > limit:
                    # A file of holes may state any size; its application's memory cannot hold it.
                    raise DomainError(
                        f"{file.path} is said to have {size} bytes, more than its application's memory",
                        hint="do not trust that application",
                    )
                size, data = fetch(file.application, file.path, offset)
                if not data and offset < size:
                    raise DomainError(f"{file.path} ended early", hint="fetch it again")
                output.write(data)
                offset += len(data)
                progress(f"receiving {relative}", offset, size)
            output.flush()
            os.fsync(output.fileno())
        partial.replace(target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}", hint="name another directory") from error
    return target


def _folder(directory: Path, names: tuple[str, ...]) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            directory = directory / name
            if directory.is_symlink():
                raise UsageError(f"{directory} is a link", hint="name another directory")
            directory.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{directory} cannot be made: {error.strerror}", hint="name another directory") from error
    return directory


def safe(name: str) -> bool:
    """Whether ``name`` is that of a file and nothing else."""
    return name not in ("", ".", "..") and len(name.encode()) <= 200 and name.isprintable() and "\\" not in name
