"""A root file system, by its superblock: what kind, how large, and whether a Realm's kernel mounts it as it is.

The Realm's kernel reads the rest, under dm-verity; here it is only found out what would fail there, so that it is said
when the image is built. Formats: the kernel's fs/ext4/ext4.h, fs/erofs/erofs_fs.h, fs/squashfs/squashfs_fs.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from vambrace.errors import ImageError

BLOCK: Final = 4096
_KINDS: Final = "ext4, EROFS and SquashFS are taken"
_OTHERS: Final = (
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (512, b"LABELONE", "LVM"),
    (1024 + 16, b"F2FS", "F2FS"),
    (0x8001, b"CD001", "ISO 9660"),
    (3, b"NTFS", "NTFS"),
)
# filetype, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold
_EXT4_KNOWN: Final = 0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
_EXT4_RECOVER, _EXT4_CLEAN, _EXT4_ERRORS = 0x4, 1, 2
# zero padding, configurations, chunks, tail packing, fragments, prefixes of attributes
_EROFS_KNOWN: Final = 0x1 | 0x2 | 0x4 | 0x10 | 0x20 | 0x40
_SQUASHFS_COMPRESSION: Final = {1, 3, 4, 5, 6}  # gzip, LZO, XZ, LZ4, Zstandard


@dataclass(frozen=True)
class FileSystem:
    """``kind`` is the kernel's name for it; it takes the first ``size`` bytes of its place."""

    kind: str
    size: int


def identify(file: BinaryIO, offset: int, space: int) -> FileSystem | None:
    """The file system in the ``space`` bytes at ``offset``; None where there is none that is taken.

    Raises ``ImageError`` for one that a Realm's kernel would not mount.
    """
    file.seek(offset)
    start = file.read(min(space, 4096))
    found = None
    for read in (_ext4, _erofs, _squashfs):
        found = found or read(start)
    if found and not 0 < found.size <= space:
        raise ImageError(
            f"the disk's {found.kind} has {found.size} bytes, its place {space}", hint="the disk is cut off, or broken"
        )
    return found


def required(file: BinaryIO, offset: int, space: int) -> FileSystem:
    """As ``identify``; raises ``ImageError`` where there is none."""
    found = identify(file, offset, space)
    if found is None:
        for place, magic, name in _OTHERS:
            file.seek(offset + place)
            if file.read(len(magic)) == magic:
                raise ImageError(f"the disk's root is in the format {name}", hint=_KINDS)
        raise ImageError("the disk's root has no file system that is known", hint=_KINDS)
    return found


def _ext4(start: bytes) -> FileSystem | None:
    block = start[1024:2048]
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        return None
    (blocks, log_size, state, incompatible) = (
        struct.unpack_from("<I", block, 4)[0],
        struct.unpack_from("<I", block, 0x18)[0],
        struct.unpack_from("<H", block, 0x3A)[0],
        struct.unpack_from("<I", block, 0x60)[0],
    )
    if log_size != 2:
        # dm-verity's blocks have 4096 bytes, and a device serves no smaller ones.
        raise ImageError("the disk's ext4 has blocks that are not of 4096 bytes", hint="make it with mke2fs -b 4096")
    if incompatible & 0x80:
        blocks |= struct.unpack_from("<I", block, 0x150)[0] << 32
    if incompatible & _EXT4_RECOVER or not state & _EXT4_CLEAN or state & _EXT4_ERRORS:
        raise ImageError(
            "the disk's ext4 was not unmounted, or has errors", hint="shut its system down; or run e2fsck on it"
        )
    if incompatible & ~_EXT4_KNOWN:
        raise ImageError("the disk's ext4 has features that are not known", hint=f"{incompatible & ~_EXT4_KNOWN:#x}")
    return FileSystem("ext4", blocks * BLOCK)


def _erofs(start: bytes) -> FileSystem | None:
    block = start[1024:1152]
    if len(block) < 128 or block[:4] != b"\xe2\xe1\xf5\xe0":
        return None
    bits, blocks, incompatible, devices = (
        block[12],
        struct.unpack_from("<I", block, 36)[0],
        struct.unpack_from("<I", block, 80)[0],
        struct.unpack_from("<H", block, 86)[0],
    )
    if bits != 12 or devices or incompatible & ~_EROFS_KNOWN:
        raise ImageError(
            "the disk's EROFS has further devices, blocks that are not of 4096 bytes, or features that are not known",
            hint="make it with mkfs.erofs, and the kernel's usual blocks",
        )
    return FileSystem("erofs", blocks * BLOCK)


def _squashfs(start: bytes) -> FileSystem | None:
    if len(start) < 96 or start[:4] != b"hsqs":
        return None
    compression, major, minor, size = (
        struct.unpack_from("<H", start, 20)[0],
        struct.unpack_from("<H", start, 28)[0],
        struct.unpack_from("<H", start, 30)[0],
        struct.unpack_from("<Q", start, 40)[0],
    )
    if (major, minor) != (4, 0) or compression not in _SQUASHFS_COMPRESSION:
        raise ImageError("the disk's SquashFS is not of version 4.0, or compressed as no kernel reads it", hint=_KINDS)
    return FileSystem("squashfs", size)
