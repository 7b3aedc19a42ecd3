"""Folders and links of a disk's file system, as far as it takes to say whether a file is there.

Read as bytes of a stranger's: every step is bounded, and what is not understood is ``Unreadable``, which is no error of
the disk's. Formats: the kernel's Documentation/filesystems/ext4, fs/erofs/erofs_fs.h. Of SquashFS, whose folders are
compressed in ways that Python cannot read, nothing is known.
"""

from __future__ import annotations

import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Final

BLOCK: Final = 4096
MAX_FOLDER: Final = 16 << 20  # bytes of a folder or link
MAX_LINKS: Final = 40  # that a path may lead through, as in Linux
MAX_NAMES: Final = 4096  # of a path, links followed
MAX_READ: Final = 64 << 20  # bytes of a file system, in all: seconds
_FEATURES_UNREAD: Final = 0x10  # of ext4: meta_bg, where descriptors are elsewhere
_EXTENTS, _INLINE, _ENCRYPTED = 0x80000, 0x10000000, 0x800
_EXTENT_MAGIC: Final = 0xF30A
_MAX_DEPTH: Final = 5


class Unreadable(Exception):
    """Not understood, or not whole."""


class Inode:
    """A file, folder or link: ``mode`` as in ``st_mode``, ``size`` in bytes, and what its reader knows of it."""

    def __init__(self, number: int, mode: int, size: int, head: bytes) -> None:
        self.number, self.mode, self.size, self.head = number, mode, size, head

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Contents(ABC):
    """A file system in a file, from its first byte on. Methods raise ``Unreadable``."""

    root: int

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._left = MAX_READ
        self._folders: dict[int, dict[bytes, int]] = {}

    @abstractmethod
    def inode(self, number: int) -> Inode: ...

    @abstractmethod
    def entries(self, folder: Inode) -> dict[bytes, int]:
        """The names in ``folder``, with the numbers of what they are."""

    @abstractmethod
    def data(self, inode: Inode) -> bytes:
        """What is in a folder or link."""

    def find(self, path: str, *, follow: bool = True) -> Inode | None:
        """What is at ``path``, links followed within the file system, the last one only if ``follow``."""
        names = path.encode().split(b"/")[::-1]
        stack = [self.inode(self.root)]
        links = steps = 0
        while names:
            name = names.pop()
            steps += 1
            if steps > MAX_NAMES:
                raise Unreadable
            if name in (b"", b"."):
                continue
            if name == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            if not stack[-1].is_folder:
                return None
            number = self.names(stack[-1]).get(name)
            if number is None:
                return None
            found = self.inode(number)
            if found.is_link and (names or follow):
                links += 1
                if links > MAX_LINKS:
                    return None
                target = self.data(found)
                if target.startswith(b"/"):
                    del stack[1:]
                names += target.split(b"/")[::-1]
                continue
            stack.append(found)
        return stack[-1]

    def names(self, folder: Inode) -> dict[bytes, int]:
        """As ``entries``, read once."""
        if folder.number not in self._folders:
            self._folders[folder.number] = self.entries(folder)
        return self._folders[folder.number]

    def _spend(self, size: int) -> None:
        """Bounds time and memory: each block that is read or made counts, and less than one as one."""
        self._left -= max(size, BLOCK)
        if self._left < 0:
            raise Unreadable

    def _read(self, offset: int, size: int) -> bytes:
        self._spend(size)
        if not 0 <= offset <= self._size - size:
            raise Unreadable
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise Unreadable
        return data


class Ext4(Contents):
    """Of blocks of 4096 bytes, as ``filesystem`` wants them."""

    root = 2

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        block = self._read(1024, 1024)
        self._inodes, self._per_group = struct.unpack_from("<I", block, 0)[0], struct.unpack_from("<I", block, 0x28)[0]
        self._inode_size = struct.unpack_from("<H", block, 0x58)[0]
        features = struct.unpack_from("<I", block, 0x60)[0]
        self._descriptor = struct.unpack_from("<H", block, 0xFE)[0] if features & 0x80 else 32
        if features & _FEATURES_UNREAD or not self._per_group or not 128 <= self._inode_size <= BLOCK:
            raise Unreadable
        if not 32 <= self._descriptor <= 1024:
            raise Unreadable

    def inode(self, number: int) -> Inode:
        if not 1 <= number <= self._inodes:
            raise Unreadable
        group, index = divmod(number - 1, self._per_group)
        descriptor = self._read(BLOCK + group * self._descriptor, self._descriptor)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        head = self._read(table * BLOCK + index * self._inode_size, 128)
        size = struct.unpack_from("<I", head, 4)[0] | struct.unpack_from("<I", head, 0x6C)[0] << 32
        return Inode(number, struct.unpack_from("<H", head)[0], size, head)

    def entries(self, folder: Inode) -> dict[bytes, int]:
        found = {}
        data = self.data(folder)
        for start in range(0, len(data), BLOCK):
            at, end = start, min(start + BLOCK, len(data))
            while at + 8 <= end:
                number, length, name, _ = struct.unpack_from("<IHBB", data, at)
                if length < 8 or length % 4 or at + length > end or name > length - 8:
                    raise Unreadable
                if number:
                    found[data[at + 8 : at + 8 + name]] = number
                at += length
        return found

    def data(self, inode: Inode) -> bytes:
        (flags,) = struct.unpack_from("<I", inode.head, 0x20)
        inside = inode.head[0x28:0x64]
        if flags & (_INLINE | _ENCRYPTED) or inode.size > MAX_FOLDER:
            raise Unreadable
        if inode.is_link and inode.size < len(inside) and not flags & _EXTENTS:
            return inside[: inode.size]
        count = -(-inode.size // BLOCK)
        self._spend(inode.size)
        places = self._extents(inside, _MAX_DEPTH, count) if flags & _EXTENTS else self._blocks(inside, count)
        blocks = dict(islice(places, count))
        whole = b"".join(self._read(blocks[n] * BLOCK, BLOCK) if n in blocks else bytes(BLOCK) for n in range(count))
        return whole[: inode.size]

    def _extents(self, node: bytes, depth: int, count: int) -> Iterator[tuple[int, int]]:
        """Number and place of each block, of ``count`` (ext4, "Extent Tree")."""
        magic, entries, _, level = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or level > depth or 12 + 12 * entries > len(node):
            raise Unreadable
        for at in range(12, 12 + 12 * entries, 12):
            first, length, high, low = struct.unpack_from("<IHHI", node, at)
            if level:
                _, low, high = struct.unpack_from("<IIH", node, at)
                yield from self._extents(self._read((high << 32 | low) * BLOCK, BLOCK), level - 1, count)
            elif length <= 0x8000:  # longer ones are not written yet: zeros
                for number in range(first, min(first + length, count)):
                    yield number, (high << 32 | low) + number - first

    def _blocks(self, node: bytes, count: int) -> Iterator[tuple[int, int]]:
        """The same of a file as ext3 has it: twelve blocks, and blocks of blocks."""
        places = struct.unpack("<15I", node)
        yield from ((number, place) for number, place in enumerate(places[:12]) if place and number < count)
        further = 12
        for level, place in enumerate(places[12:14], 1):
            if place and further < count:
                yield from self._indirect(place, level, further, count)
            further += (BLOCK // 4) ** level
        if further < count:
            raise Unreadable

    def _indirect(self, place: int, level: int, first: int, count: int) -> Iterator[tuple[int, int]]:
        span = (BLOCK // 4) ** (level - 1)
        for index, each in enumerate(struct.unpack("<1024I", self._read(place * BLOCK, BLOCK))):
            number = first + index * span
            if number >= count:
                return
            if each and level > 1:
                yield from self._indirect(each, level - 1, number, count)
            elif each:
                yield number, each


class Erofs(Contents):
    """Folders and links, which are never compressed."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        block = self._read(1024, 128)
        (self.root,) = struct.unpack_from("<H", block, 14)
        self._start = struct.unpack_from("<I", block, 40)[0] * BLOCK

    def inode(self, number: int) -> Inode:
        at = self._start + number * 32
        head = self._read(at, 32)
        if head[0] & 1:
            head = self._read(at, 64)
            (size,) = struct.unpack_from("<Q", head, 8)
        else:
            (size,) = struct.unpack_from("<I", head, 8)
        return Inode(number, struct.unpack_from("<H", head, 4)[0], size, head)

    def entries(self, folder: Inode) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        data = self.data(folder)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            if len(block) < 12:
                raise Unreadable
            count = struct.unpack_from("<H", block, 8)[0] // 12
            if 12 * count > len(block):
                raise Unreadable
            rows = [struct.unpack_from("<QH", block, 12 * index) for index in range(count)]
            for index, (number, place) in enumerate(rows):
                end = rows[index + 1][1] if index + 1 < count else len(block)
                found[block[place:end].rstrip(b"\0")] = number
        return found

    def data(self, inode: Inode) -> bytes:
        layout, attributes = inode.head[0] >> 1 & 7, struct.unpack_from("<H", inode.head, 2)[0]
        if layout not in (0, 2) or inode.size > MAX_FOLDER:
            raise Unreadable
        (place,) = struct.unpack_from("<I", inode.head, 16)
        tail = inode.size % BLOCK if layout == 2 else 0
        data = self._read(place * BLOCK, inode.size - tail) if inode.size > tail else b""
        head = len(inode.head) + (12 + 4 * (attributes - 1) if attributes else 0)
        return data + self._read(self._start + inode.number * 32 + head, tail)


def open_contents(file: BinaryIO, kind: str) -> Contents:
    """Those of the file system ``kind`` (``filesystem.FileSystem``) in ``file``. Raises ``Unreadable``."""
    if kind == "ext4":
        return Ext4(file)
    if kind == "erofs":
        return Erofs(file)
    raise Unreadable
