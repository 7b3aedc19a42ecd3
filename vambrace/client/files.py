"""Files of an application, sent and taken over the attested channel: in parts, resumed where cut, whole or not there.

``Ask`` is a request to the agent, repeated on a new channel where the first one was cut.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vambrace.client.channel import OTHER_VERSION
from vambrace.client.progress import Progress, silent
from vambrace.client.said import plain
from vambrace.errors import DomainError, UsageError

PART = 256 << 10  # what the agent takes at a time

Ask = Callable[..., tuple[dict[str, Any], bytes]]


@dataclass(frozen=True)
class FileInfo:
    """What is in a folder of an application; ``kind`` is file, folder, link or other, ``size`` in bytes, ``changed`` in
    seconds since 1970."""

    name: str
    kind: str
    size: int
    changed: int

    @classmethod
    def decode(cls, value: Any) -> FileInfo:
        """Raises ``DomainError`` for what is no description of a file."""
        if isinstance(value, dict):
            name, kind, size, changed = (value.get(key) for key in ("name", "kind", "size", "changed"))
            if isinstance(name, str) and isinstance(kind, str) and type(size) is int and type(changed) is int:
                return cls(plain(name), plain(kind), size, changed)
        raise DomainError("the agent's list of files is damaged", hint=OTHER_VERSION)


@dataclass(frozen=True)
class Place:
    """A path of an application's, below its results, scratch space or one of its volumes."""

    application: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """``APPLICATION:PATH``; a path that does not begin with / is below the application's results. Raises
        ``UsageError``."""
        application, colon, path = text.partition(":")
        if not application or not colon:
            raise UsageError(f"{text[:80]!r} names no application", hint="APPLICATION:PATH, as in analysis:/scratch/a")
        path = path.rstrip("/")
        if not path.startswith("/"):
            path = f"/results/{application}/{path}".rstrip("/")
        return cls(application, path)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def arguments(self) -> dict[str, str]:
        return {"application": self.application, "path": self.path}


def listing(place: Place, ask: Ask) -> tuple[list[FileInfo], bool]:
    """What is there, and whether there is more. Raises ``DomainError``."""
    reply, _ = ask("files", **place.arguments)
    found = reply.get("files")
    if not isinstance(found, list) or type(reply.get("more")) is not bool:
        raise DomainError("the agent's list of files is damaged", hint=OTHER_VERSION)
    return [FileInfo.decode(item) for item in found], reply["more"]


def put(source: Path, place: Place, ask: Ask, progress: Progress = silent) -> int:
    """Send the file ``source``; its size. What was sent before of the same contents is not sent again.

    Raises ``UsageError`` (the file cannot be read), ``DomainError``.
    """
    try:
        with source.open("rb") as file:
            sha256, size = _digest(file)
            about = {**place.arguments, "sha256": sha256}
            offset = _offset(ask("file-begin", size=size, **about)[0], size)
            while offset < size:
                file.seek(offset)
                data = file.read(min(PART, size - offset))
                if not data:
                    raise UsageError(f"{source} became shorter while it was sent", hint="send it again")
                offset = _offset(ask("file-write", body=data, offset=offset, **about)[0], size, least=offset + 1)
                progress(f"sending {source.name}", offset, size)
            ask("file-end", size=size, **about)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}", hint="name a file that can be read") from error
    return size


def get(place: Place, target: Path, uuid: str, ask: Ask, limit: int, progress: Progress = silent) -> int:
    """Fetch a file of at most ``limit`` bytes into ``target``; its size. What was fetched before from the Realm
    ``uuid`` is not fetched again.

    Raises ``UsageError`` (it cannot be written), ``DomainError``.
    """
    if target.is_symlink() or (target.exists() and not target.is_file()):  # a device would be replaced
        raise UsageError(f"{target} is in the way", hint="remove it, or give another name")
    partial = target.with_name(f".{uuid[:13]}.{target.name}.part")
    reply, _ = ask("file-digest", **place.arguments)
    size, sha256 = reply.get("size"), reply.get("sha256")
    if type(size) is not int or not isinstance(sha256, str) or size < 0:
        raise DomainError("the agent's reply describes no file", hint=OTHER_VERSION)
    if size > limit:
        raise DomainError(
            f"{place.path} is said to have {size} bytes, more than there is room for",
            hint="do not trust that application",
        )
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, 0o600), "r+b") as output:
            _receive(place, output, size, ask, lambda done: progress(f"receiving {target.name}", done, size))
            output.flush()
            os.fsync(output.fileno())
            output.seek(0)
            if _digest(output) != (sha256, size):
                partial.unlink()
                raise DomainError(f"{place.path} changed while it was fetched", hint="fetch it again")
        partial.replace(target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}", hint="give another name") from error
    return size


def _receive(place: Place, output: BinaryIO, size: int, ask: Ask, progress: Callable[[int], None]) -> None:
    """Go on with a file of ``size`` bytes behind what ``output`` has of it; ``progress`` is told how far it is. Raises
    ``DomainError``."""
    offset = os.fstat(output.fileno()).st_size
    if offset > size:  # of another one
        output.truncate(0)
        offset = 0
    output.seek(offset)
    while offset < size:
        reply, data = ask("file-read", offset=offset, **place.arguments)
        if not data or reply.get("offset") != offset:
            raise DomainError(f"{place.path} ended early", hint="fetch it again")
        data = data[: size - offset]
        output.write(data)
        offset += len(data)
        progress(offset)


def _digest(file: BinaryIO) -> tuple[str, int]:
    """SHA-256 and size."""
    found = hashlib.sha256()
    size = 0
    while block := file.read(1 << 20):
        found.update(block)
        size += len(block)
    return found.hexdigest(), size


def _offset(reply: dict[str, Any], size: int, least: int = 0) -> int:
    """How much the agent has."""
    offset = reply.get("offset")
    if type(offset) is not int or not least <= offset <= size:
        raise DomainError("the agent's reply is not about the file that is sent", hint=OTHER_VERSION)
    return offset
