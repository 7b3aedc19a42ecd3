"""A bundle on its way in: what is sent, and what the host has already, become one file with a known digest."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import BinaryIO, Final

from vambrace.errors import CapacityError, ImageError, UsageError

BLOCK: Final = 4 << 20


@dataclass(frozen=True)
class Kept:
    """A blob that the host has: the bundle's bytes from ``offset`` on are those of ``file``, of ``size`` bytes."""

    offset: int
    size: int
    file: BinaryIO


def check_size(size: int, limit: int) -> None:
    """Raises ``ImageError`` for an image of more than ``limit`` bytes."""
    if size > limit:
        raise ImageError(f"the image is larger than {limit} bytes", hint="raise image_limit on the host")


async def receive(
    descriptor: int,
    sent: AsyncIterator[bytes],
    kept: Sequence[Kept],
    *,
    limit: int,
    require_space: Callable[[int], None],
) -> str:
    """Write what is ``sent``, and ``kept`` in its places, to the file ``descriptor`` (closed in the end).

    Returns the SHA-256 of all that. Raises ``ImageError`` (more than ``limit`` bytes), ``UsageError`` (a place that
    cannot be), ``CapacityError``, also as ``require_space`` does for bytes that are to be written.
    """
    hasher = hashlib.sha256()
    size = 0
    block = bytearray()
    try:
        with os.fdopen(descriptor, "wb") as file:

            def put() -> None:
                require_space(len(block))
                hasher.update(block)
                file.write(block)
                block.clear()

            async with aclosing(spliced(sent, kept)) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    check_size(size, limit)
                    # What comes from the network are small pieces: a thread for each would take longer than its work.
                    block += chunk
                    if len(block) >= BLOCK:
                        await asyncio.to_thread(put)
            await asyncio.to_thread(put)
    except ConnectionError:
        raise
    except OSError as error:
        raise CapacityError(
            f"the image could not be stored: {error.strerror}", hint="delete images that nobody needs any more"
        ) from error
    return hasher.hexdigest()


async def spliced(sent: AsyncIterator[bytes], kept: Sequence[Kept]) -> AsyncGenerator[bytes]:
    """``sent`` with each of ``kept`` where it belongs. Raises ``UsageError`` where one lies in another or beyond the
    end, ``OSError`` where it cannot be read."""
    waiting = sorted(kept, key=lambda blob: blob.offset, reverse=True)
    position = 0
    async for chunk in sent:
        while waiting and waiting[-1].offset <= position + len(chunk):
            blob = waiting.pop()
            before = blob.offset - position
            if before < 0:
                raise UsageError("a blob is said to begin inside another", hint="send the whole bundle")
            yield chunk[:before]
            chunk = chunk[before:]
            while data := await asyncio.to_thread(blob.file.read, BLOCK):
                yield data
            position = blob.offset + blob.size
        yield chunk
        position += len(chunk)
    if waiting:
        raise UsageError("a blob is said to begin beyond the bundle's end", hint="send the whole bundle")
