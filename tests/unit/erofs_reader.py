"""A reader of uncompressed EROFS images, written from the kernel's description of the format (fs/erofs/erofs_fs.h) and
not from the writer: each file by its path."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

BLOCK = 4096
INLINE = 2
PREFIXES = {1: "user.", 6: "security."}


@dataclass(frozen=True)
class File:
    """``content`` is a file's or a link's target; the same ``number`` is the same file."""

    mode: int
    uid: int
    gid: int
    mtime: int
    links: int
    number: int
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]


def read_erofs(image: bytes) -> dict[bytes, File]:
    """Raises ``AssertionError`` for what a kernel would not read."""
    magic, _, _, bits, _, root, count = struct.unpack_from("<IIIBBHQ", image, 1024)
    assert magic == 0xE0F5E1E2 and 1 << bits == BLOCK and len(image) % BLOCK == 0
    assert struct.unpack_from("<I", image, 1024 + 36)[0] == len(image) // BLOCK
    found: dict[bytes, File] = {}
    waiting = [(b"/", root, root)]
    while waiting:
        path, number, parent = waiting.pop()
        found[path] = file = _inode(image, number)
        if stat.S_ISDIR(file.mode):
            entries = _entries(file.content)
            assert entries.pop(b".") == (number, 2) and entries.pop(b"..") == (parent, 2)
            for name, (child, kind) in entries.items():
                mode = _inode(image, child).mode
                assert kind == {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFIFO: 5, stat.S_IFLNK: 7}[stat.S_IFMT(mode)]
                waiting.append((path.rstrip(b"/") + b"/" + name, child, number))
    assert len({file.number for file in found.values()}) == count
    return found


def _inode(image: bytes, number: int) -> File:
    at = number * 32
    layout, xattrs, mode, _, size, block, _, uid, gid, seconds, nanoseconds, links = struct.unpack_from(
        "<HHHHQIIIIQII", image, at
    )
    assert layout & 1 and layout >> 1 in (0, INLINE)
    head = 64 + (12 + 4 * (xattrs - 1) if xattrs else 0)
    whole, tail = size, 0
    if layout >> 1 == INLINE:
        tail = size % BLOCK
        whole = size - tail
        assert tail and at // BLOCK == (at + head + tail - 1) // BLOCK, "the last part lies across two blocks"
    content = image[block * BLOCK : block * BLOCK + whole] + image[at + head : at + head + tail]
    assert len(content) == size
    attributes = tuple(_xattrs(image[at + 64 : at + head])) if xattrs else ()
    return File(mode, uid, gid, seconds * 10**9 + nanoseconds, links, number, content, attributes)


def _xattrs(body: bytes) -> list[tuple[str, bytes]]:
    found = []
    at = 12
    while at < len(body):
        length, prefix, size = struct.unpack_from("<BBH", body, at)
        name = PREFIXES[prefix] + body[at + 4 : at + 4 + length].decode("utf-8", "surrogateescape")
        found.append((name, body[at + 4 + length : at + 4 + length + size]))
        at += 4 + length + size + -(length + size) % 4
    return found


def _entries(content: bytes) -> dict[bytes, tuple[int, int]]:
    found: dict[bytes, tuple[int, int]] = {}
    names: list[bytes] = []
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        count = struct.unpack_from("<QHBB", block)[1] // 12
        places = [struct.unpack_from("<QHBB", block, 12 * index) for index in range(count)]
        for index, (number, place, kind, _) in enumerate(places):
            end = places[index + 1][1] if index + 1 < count else len(block)
            name = block[place:end].rstrip(b"\0") if index + 1 == count else block[place:end]
            found[name] = (number, kind)
            names.append(name)
    assert names == sorted(set(names)), "names are searched by halves"
    return found
