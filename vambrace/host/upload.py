"""A bundle on its way in: what is sent, and what the host has already, become one file with a known digest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from vambrace.errors import CapacityError, ImageError, UsageError
from vambrace.host.store import WHOLE, no_blob

#: What one who is slow in sending makes the host keep in memory.
BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Kept:
    """A blob that the host has: the bundle's bytes from ``offset`` on are those of the file ``path``."""

    offset: int
    size: int
    path: Path
    digest: str


def in_order(kept: Iterable[Kept]) -> list[Kept]:
    """``kept`` by their places. Raises ``UsageError`` where one lies in another."""
    end, ordered = 0, sorted(kept, key=lambda blob: blob.offset)
    for blob in ordered:
        if blob.offset < end:
            raise UsageError("a blob is said to begin inside another", hint=WHOLE)
        end = blob.offset + blob.size
    return ordered


def check_size(size: int, limit: int) -> None:
    """Raises ``ImageError`` for an image of more than ``limit`` bytes."""
    if size > limit:
        raise ImageError(f"the image is larger than {limit} bytes", hint="raise image_limit on the host")


async def receive(
    file: IO[bytes],
    sent: AsyncIterator[bytes],
    *,
    known: int,
    limit: int,
    require_space: Callable[[int], None],
) -> str:
    """Write what is ``sent`` to ``file``. ``known`` bytes of the image are not.

    Returns the SHA-256 of what is. Raises ``ImageError`` (an image of more than ``limit`` bytes), ``CapacityError``,
    also as ``require_space`` does for bytes that are to be written.
    """
    hasher = hashlib.sha256()
    block = bytearray()

    def put() -> None:
        require_space(len(block))
        hasher.update(block)
        file.write(block)
        block.clear()

    with _storing():
        async for chunk in sent:
            known += len(chunk)
            check_size(known, limit)
            # What comes from the network are small pieces: a thread for each would take longer than its work.
            block += chunk
            if len(block) >= BLOCK:
                await asyncio.to_thread(put)
        await asyncio.to_thread(put)
        file.flush()
    return hasher.hexdigest()


def join(sent: Path, kept: Sequence[Kept], digest: str, file: IO[bytes], require_space: Callable[[int], None]) -> None:
    """Write the bundle with this ``digest`` to ``file``: what is in ``sent``, and ``kept`` (in order) in their places.

    Raises ``ImageError`` (another digest), ``UsageError`` and ``NotFound`` as ``joined``, ``CapacityError``.
    """
    with _storing():
        # Not a byte is written before: else a request of a few would fill the disk.
        hasher = hashlib.sha256()
        for block in joined(sent, kept):
            hasher.update(block)
        if hasher.hexdigest() != digest:
            # Not told which: who knows it would pass for one who has the blobs.
            raise ImageError("the image has another digest", hint=WHOLE)
        for block in joined(sent, kept):
            require_space(len(block))
            file.write(block)
        file.flush()


def joined(sent: Path, kept: Sequence[Kept]) -> Iterator[bytes]:
    """A bundle in blocks, ``kept`` in order. Raises ``UsageError`` where one lies beyond the end, ``NotFound`` where
    one is there no more, ``OSError``."""
    with sent.open("rb") as file:
        position = 0
        for blob in kept:
            left = blob.offset - position
            while left:
                if not (block := file.read(min(left, BLOCK))):
                    raise UsageError("a blob is said to begin beyond the bundle's end", hint=WHOLE)
                left -= len(block)
                yield block
            try:
                with blob.path.open("rb") as part:
                    yield from _blocks(part)
            except OSError:
                raise no_blob(blob.digest) from None
            position = blob.offset + blob.size
        yield from _blocks(file)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise CapacityError(
            f"the image could not be stored: {error.strerror}", hint="delete images that nobody needs any more"
        ) from error
