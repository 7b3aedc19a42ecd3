"""An uncompressed EROFS image, written from a description of its files (Linux, fs/erofs/erofs_fs.h).

For trees of strangers: their files never lie in this machine's file system, and no privileges are needed for owners
and modes. The same description gives the same bits, whatever tools are installed.

    block 0     superblock, at 1024
    block 1 …   inodes, each with its attributes and, where it fits, the last part of its content
    then        whole blocks of contents
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Final, Protocol

from vambrace.errors import BuildError

BLOCK: Final = 4096
_UUID: Final = bytes.fromhex("76616d62726163658000000000000003")
_MAGIC: Final = 0xE0F5E1E2
_SUPERBLOCK_AT: Final = 1024
_INODE_SIZE, _SLOT = 64, 32  # of an extended inode; inodes begin at multiples of a slot
_PLAIN, _INLINE = 0, 2  # layouts: the last part of the content in a block of its own, or behind the inode
_EXTENDED: Final = 1
_LARGEST_TAIL: Final = BLOCK // 2  # a larger one would waste as much space as it saves
_NO_BLOCK: Final = 0xFFFFFFFF
_DIRENT: Final = struct.Struct("<QHBB")
_TYPES: Final = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFIFO: 5, stat.S_IFLNK: 7}
_PREFIXES: Final = {"user.": 1, "security.": 6}


class Entry(Protocol):
    """A file, folder, symbolic link or pipe; the same object under two names is a hard link. ``mtime`` is in
    nanoseconds. Attributes are of the spaces ``user`` and ``security``."""

    @property
    def mode(self) -> int: ...  # with the type, as st_mode
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def size(self) -> int: ...  # of a file's content, or a link's target
    @property
    def xattrs(self) -> Mapping[str, bytes]: ...
    @property
    def children(self) -> Mapping[bytes, Entry]: ...


#: Gives of a file's content, or a link's target, from an offset so many bytes.
Copy = Callable[[Entry, int, int], bytes]


class _Inode:
    """One entry with its place in the image."""

    def __init__(self, entry: Entry, number: int, parent: _Inode | None) -> None:
        self.entry = entry
        self.number = number
        self.parent = parent or self
        self.children: list[tuple[bytes, _Inode]] = []
        self.links = 0
        self.attributes = _attributes(entry.xattrs)
        self.size = entry.size
        self.offset = 0
        self.block = _NO_BLOCK
        self.blocks = 0
        self.inline = False

    @property
    def folder(self) -> bool:
        return stat.S_ISDIR(self.entry.mode)

    @property
    def tail(self) -> int:
        return self.size % BLOCK if self.inline else 0


def write_erofs(root: Entry, copy: Copy, out: BinaryIO) -> int:
    """Write the image of ``root`` to the empty file ``out``; returns its size in bytes, whole blocks.

    Raises ``BuildError`` where EROFS cannot hold it.
    """
    inodes = _collect(root)
    end = BLOCK
    for inode in inodes:
        end = _place(inode, end)
    block = -(-end // BLOCK)
    for inode in inodes:
        if inode.blocks:
            inode.block = block
            block += inode.blocks
    if block >= _NO_BLOCK:
        raise BuildError("the files are too many for one disk", hint="at most 16 TiB")
    out.truncate(block * BLOCK)
    out.seek(_SUPERBLOCK_AT)
    out.write(_superblock(inodes[0], len(inodes), block))
    for inode in inodes:
        _write(inode, copy, out)
    return block * BLOCK


def _collect(root: Entry) -> list[_Inode]:
    """All inodes, the root first, folder by folder."""
    top = _Inode(root, 1, None)
    top.links = 2
    found = [top]
    by_entry: dict[int, _Inode] = {id(root): top}
    for inode in found:
        for name, entry in sorted(inode.entry.children.items()):
            child = by_entry.get(id(entry))
            if child is None:
                child = _Inode(entry, len(found) + 1, inode)
                by_entry[id(entry)] = child
                found.append(child)
            child.links += 1
            if child.folder:
                child.links += 1
                inode.links += 1
            inode.children.append((name, child))
        if inode.folder:
            parts = _parts(inode)
            inode.size = (len(parts) - 1) * BLOCK + sum(_DIRENT.size + len(name) for name, _ in parts[-1])
    return found


def _place(inode: _Inode, end: int) -> int:
    """Choose where ``inode`` goes, at ``end`` or behind it; returns the new end."""
    head = _INODE_SIZE + len(inode.attributes)
    tail = inode.size % BLOCK
    inode.inline = 0 < tail <= _LARGEST_TAIL and head + tail <= BLOCK
    inode.blocks = inode.size // BLOCK if inode.inline else -(-inode.size // BLOCK)
    whole = head + inode.tail
    offset = -(-end // _SLOT) * _SLOT
    # An inode with what is behind it must not lie across two blocks.
    if whole <= BLOCK and offset // BLOCK != (offset + whole - 1) // BLOCK:
        offset = -(-offset // BLOCK) * BLOCK
    inode.offset = offset
    return offset + whole


def _superblock(root: _Inode, inodes: int, blocks: int) -> bytes:
    return struct.pack(
        "<IIIBBHQQIIII16s16sIHHHBBIQB23x",
        *(_MAGIC, 0, 0, BLOCK.bit_length() - 1, 0, root.offset // _SLOT, inodes, 0, 0, blocks, 0, 0),
        *(_UUID, b"", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    )


def _write(inode: _Inode, copy: Copy, out: BinaryIO) -> None:
    entry = inode.entry
    layout = _INLINE if inode.inline else _PLAIN
    count = (len(inode.attributes) - 12) // 4 + 1 if inode.attributes else 0
    seconds, nanoseconds = divmod(entry.mtime, 10**9)
    head = struct.pack(
        "<HHHHQIIIIQII16x",
        *(_EXTENDED | layout << 1, count, entry.mode, 0, inode.size, inode.block if inode.blocks else _NO_BLOCK),
        *(inode.number, entry.uid, entry.gid, seconds, nanoseconds, inode.links),
    )
    content = _folder(inode) if inode.folder else None
    whole = inode.size - inode.tail
    out.seek(inode.offset)
    out.write(head + inode.attributes)
    if inode.tail:
        out.write(content[whole:] if content is not None else copy(entry, whole, inode.tail))
    if not whole:
        return
    out.seek(inode.block * BLOCK)
    if content is not None:
        out.write(content[:whole])
        return
    for offset in range(0, whole, 256 * BLOCK):
        out.write(copy(entry, offset, min(256 * BLOCK, whole - offset)))


def _attributes(xattrs: Mapping[str, bytes]) -> bytes:
    """The header and entries of inline attributes, names in order."""
    if not xattrs:
        return b""
    entries = bytearray()
    for name in sorted(xattrs):
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        rest = name[len(prefix) :].encode("utf-8", "surrogateescape")
        entry = struct.pack("<BBH", len(rest), _PREFIXES[prefix], len(xattrs[name])) + rest + xattrs[name]
        entries += entry + bytes(-len(entry) % 4)
    return struct.pack("<IB7x", 0, 0) + bytes(entries)


#: The entries of one block of a folder.
_Part = Sequence[tuple[bytes, "_Inode"]]


def _parts(inode: _Inode) -> list[_Part]:
    """A folder's entries, in the order of their bytes, as they go into blocks."""
    entries = sorted([(b".", inode), (b"..", inode.parent), *inode.children], key=lambda entry: entry[0])
    parts: list[list[tuple[bytes, _Inode]]] = [[]]
    used = 0
    for name, child in entries:
        if used + _DIRENT.size + len(name) > BLOCK:
            parts.append([])
            used = 0
        parts[-1].append((name, child))
        used += _DIRENT.size + len(name)
    return list(parts)


def _folder(inode: _Inode) -> bytes:
    """A folder's content: in each block entries, then their names."""
    content = bytearray()  # it grows in its place: a folder of a stranger's may be as large as he likes
    for part in _parts(inode):
        content += bytes(-len(content) % BLOCK)
        place = _DIRENT.size * len(part)
        for name, child in part:
            kind = _TYPES[stat.S_IFMT(child.entry.mode)]
            content += _DIRENT.pack(child.offset // _SLOT, place, kind, 0)
            place += len(name)
        content += b"".join(name for name, _ in part)
    return bytes(content)
