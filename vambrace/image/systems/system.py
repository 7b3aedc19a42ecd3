"""From a disk's file to a Realm's disk: the root's bytes as they are, with a dm-verity hash tree behind them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from vambrace.debian.erofs import BLOCK, VerityDisk, add_verity
from vambrace.errors import ImageError
from vambrace.image.systems import filesystem
from vambrace.image.systems.disk import data_ranges, raw_disk
from vambrace.image.systems.filesystem import FileSystem
from vambrace.image.systems.partitions import find_root, read_table

_CHUNK: Final = 4 << 20


@dataclass(frozen=True)
class SystemDisk:
    """A disk's file, and the kernel's name for the file system on it."""

    path: Path
    verity: VerityDisk
    filesystem: str


def build_system(path: Path, partition: int | None, work: Path) -> SystemDisk:
    """The root of the disk in ``path``, in the folder ``work``: its partition with this number, or the one that is
    marked as root, or all of it. The same disk gives the same bits.

    Raises ``ImageError``, ``ConfigError``, ``BuildError`` (``ToolMissing``, ``NoSpace``), ``OSError``.
    """
    raw, out = raw_disk(path, work), work / "system.img"
    with raw.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        offset, found = _root(file, size, partition)
        with out.open("wb") as copy:
            copy.truncate(-(-found.size // BLOCK) * BLOCK)
            _copy(file, offset, min(found.size, size - offset), copy)
    if raw != path:
        raw.unlink()
    return SystemDisk(out, add_verity(out), found.kind)


def _root(file: BinaryIO, size: int, partition: int | None) -> tuple[int, FileSystem]:
    partitions = read_table(file, size)
    if not partitions and partition is None:
        return 0, filesystem.required(file, 0, size)
    if partition is None and filesystem.identify(file, 0, size):
        raise ImageError(
            "the disk is a file system and has partitions as well", hint="say which one it is: 'partition: N'"
        )
    root = find_root(partitions, partition)
    return root.offset, filesystem.required(file, root.offset, root.size)


def _copy(file: BinaryIO, offset: int, size: int, copy: BinaryIO) -> None:
    for start, length in data_ranges(file, offset, size):
        file.seek(start)
        copy.seek(start - offset)
        while length:
            data = file.read(min(length, _CHUNK))
            if not data:
                raise ImageError("the disk's file was cut off while it was read", hint="try again")
            copy.write(data)
            length -= len(data)
