"""One layer, from the compressed blob to a tar on this machine's disk: bounded, and what it says it is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from vambrace.debian import tools
from vambrace.errors import ImageError

#: Bytes that all layers of an image may unpack to; and of one layer, so many for each of its compressed bytes.
MAX_UNPACKED: Final = 32 << 30
MAX_RATIO: Final = 100
RATIO_FREE: Final = 64 << 20  # a layer may always unpack to this
MAX_PARTS: Final = 1_000_000  # members of one gzip file: more than any tool makes, which make one for each file at most
_CHUNK: Final = 1 << 20
_COMPRESSED: Final = 64 << 10  # read at a time: what is behind a member's end is copied for each member
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_DAMAGED = "save or push the image again"


def unpack_layer(blob: Path, diff_id: str, out: Path, room: int = MAX_UNPACKED) -> int:
    """Decompress ``blob`` (gzip, zstd or neither) into the file ``out`` and return its size in bytes.

    Raises ``ImageError`` beyond ``room`` bytes or the ratio, for a damaged blob, and where the result is not what
    ``diff_id`` says (``sha256:…``, OCI image specification, "Layer DiffID").
    """
    most = min(room, RATIO_FREE + MAX_RATIO * blob.stat().st_size)
    digest = hashlib.sha256()
    size = 0
    with out.open("xb") as target:
        for data in _contents(blob):
            size += len(data)
            if size > most:
                raise ImageError(
                    f"a layer of {blob.stat().st_size} bytes unpacks to more than {most >> 20} MiB",
                    hint=f"at most {MAX_RATIO} times its size, and {MAX_UNPACKED >> 30} GiB for a whole image",
                )
            digest.update(data)
            target.write(data)
    if f"sha256:{digest.hexdigest()}" != diff_id:
        raise ImageError("a layer is not what the image's configuration says: its diff_id differs", hint=_DAMAGED)
    return size


def _contents(blob: Path) -> Iterator[bytes]:
    with blob.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(_GZIP):
            yield from _gunzip(file)
        elif magic == _ZSTD:
            yield from _unzstd(file)
        else:
            while data := file.read(_CHUNK):
                yield data


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Every member of a gzip file, in pieces of bounded size."""
    data = file.read(_COMPRESSED)
    parts = 0
    while data:
        parts += 1
        if parts > MAX_PARTS:
            raise ImageError(f"a layer is a gzip file of more than {MAX_PARTS} parts", hint=_DAMAGED)
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            try:
                piece = stream.decompress(data, _CHUNK)
            except zlib.error:
                raise ImageError("a layer is not the gzip file that it begins as", hint=_DAMAGED) from None
            if piece:
                yield piece
            data = stream.unconsumed_tail or (b"" if stream.eof else file.read(_COMPRESSED))
            if not data and not stream.eof and not piece:
                raise ImageError("a layer is cut off", hint=_DAMAGED)
        data = stream.unused_data or file.read(_COMPRESSED)


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    command = [tools.find("zstd"), "--decompress", "--stdout", "--quiet", "--memory=128MB"]
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # the program knows nothing of what is buffered here
    with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            while data := process.stdout.read(_CHUNK):
                yield data
            if process.wait():
                raise ImageError("a layer is not the zstd file that it begins as", hint=_DAMAGED)
        finally:
            process.kill()
