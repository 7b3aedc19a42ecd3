"""Disks with a system that somebody sends: partition tables, superblocks, folders, headers of qcow2."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path

from disks import MIB, SECTOR, SWAP, gpt, mbr
from script import Script, demand

from vambrace.application import Application
from vambrace.errors import ConfigError, ImageError
from vambrace.image.systems.disk import MAX_DISK, check_header
from vambrace.image.systems.filesystem import identify, required
from vambrace.image.systems.partitions import LINUX_DATA, ROOT_ARM64, find_root, read_table
from vambrace.image.systems.units import check_units

APPLICATION = Application(name="web", command=(), environment={}, directory="/", unit="web@1.service")
FOLDER = Path(tempfile.mkdtemp())
ROWS = [(SWAP, 1 << 16, 1 << 16, 0), (ROOT_ARM64, 1 << 17, 1 << 17, 0), (LINUX_DATA, 1 << 18, 1 << 16, 1 << 63)]
TABLES = {
    "gpt": bytes(gpt(MIB // 2, ROWS)),
    "large sectors": bytes(gpt(MIB // 2, ROWS[1:2], sector=4096)),
    "mbr": bytes(mbr(MIB // 2, [(0x82, 1 << 16, 1 << 16), (0x83, 1 << 17, 1 << 17), (0x05, 1 << 18, 1 << 16)])),
    "none": bytes(MIB // 2),
}
VALUES = (0, 1, 2, 33, 34, 127, 128, 1023, 1024, 4096, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)


def _superblock(*fields: tuple[int, str, int]) -> bytes:
    block = bytearray(4096)
    for place, form, value in fields:
        struct.pack_into(form, block, place, value)
    return bytes(block)


SUPERBLOCKS = (
    _superblock((1028, "<I", 8), (1048, "<I", 2), (1080, "<H", 0xEF53), (1082, "<H", 1), (1120, "<I", 0x2C2)),
    _superblock((1024, "<I", 0xE0F5E1E2), (1036, "<B", 12), (1060, "<I", 8), (1104, "<I", 1)),
    _superblock((0, "<I", 0x73717368), (20, "<H", 6), (28, "<H", 4), (40, "<Q", 30000)),
)
QCOW2 = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, MIB, 0, 1, 0x30000, 0x10000, 1, 0, 0)
QCOW2 += struct.pack(">QQQII", 0, 0, 0, 4, 104)


def run(data: bytes) -> None:
    script = Script(data)
    script.of((disk, header))(script)


def disk(script: Script) -> None:
    """A table with a root in it that has a superblock, all of them changed here and there."""
    image = bytearray(script.of(tuple(TABLES.values())))
    place = script.of((0, 1 << 17, 1 << 16))
    superblock = _changed(script, bytearray(script.of(SUPERBLOCKS)), (0, 2048))
    if place or not any(image[:4096]):  # a table and a superblock at once are in one place
        image[place : place + len(superblock)] = superblock
    image = _changed(script, image, script.of(((0, 512), (SECTOR, 2 * SECTOR), (2 * SECTOR, 4 * SECTOR))))
    if script.number() & 1:
        _mend(image)
    image = image[: script.of((len(image), len(image) - 1, 1 << 17, 4096, 600, 511, 0))]
    file, wanted = io.BytesIO(image), script.of((None, 1, 2, 3, 1024))
    try:
        found = read_table(file, len(image))
        end = 0
        for each in sorted(found, key=lambda each: each.offset):
            demand(end <= each.offset and each.size >= 0, "partitions in each other's place")
            end = each.offset + each.size
            demand(each.offset >= SECTOR and end <= len(image), "a partition beyond the disk")
        identify(file, 0, len(image))
        root = find_root(found, wanted)
        demand(root in found and (wanted is None or root.number == wanted), "another partition than was asked for")
        system = required(file, root.offset, root.size)
        demand(0 < system.size <= root.size, "a file system beyond its place")
        check_units(io.BytesIO(image[root.offset :]), system.kind, [APPLICATION])
    except (ImageError, ConfigError) as error:
        demand("\n" not in error.message and len(error.message) < 2000, "an error of more than a line")


def header(script: Script) -> None:
    """That of a qcow2 file: what passes is given to qemu-img."""
    data = bytes(_changed(script, bytearray(QCOW2.ljust(512, b"\0")), (0, 112)))[: script.of((512, 104, 103, 4))]
    path = FOLDER / "disk.qcow2"
    path.write_bytes(data)
    try:
        check_header(path)
    except ImageError as error:
        demand("\n" not in error.message, "an error of more than a line")
        return
    version, backing, size, crypt = struct.unpack_from(">4xIQ8xQI", data)
    incompatible = struct.unpack_from(">Q", data, 72)[0] if version > 2 else 0
    demand(not backing and not crypt and not incompatible & 7, "a file that leads to others, or is broken")
    demand(size <= MAX_DISK, "a disk that is too large")


def _changed(script: Script, data: bytearray, within: tuple[int, int]) -> bytearray:
    """Some numbers in ``data``, between two places, are others."""
    for _ in range(script.below(5)):
        place = within[0] + script.below(within[1] - within[0])
        value = script.of(VALUES) if script.number() & 1 else script.number(4)
        form = script.of(("<B", "<H", "<I", "<Q", ">I", ">Q"))
        size = struct.calcsize(form)
        if place + size <= len(data):
            struct.pack_into(form, data, place, value & (1 << 8 * size) - 1)
    return data


def _mend(image: bytearray) -> None:
    """Checksums that are right, so that what is behind them is looked at."""
    count = min(int.from_bytes(image[SECTOR + 80 : SECTOR + 84], "little"), 128)
    length = max(24, min(int.from_bytes(image[SECTOR + 12 : SECTOR + 16], "little"), SECTOR))
    struct.pack_into("<I", image, SECTOR + 88, zlib.crc32(image[2 * SECTOR : 2 * SECTOR + count * 128]))
    struct.pack_into("<I", image, SECTOR + 16, 0)
    struct.pack_into("<I", image, SECTOR + 16, zlib.crc32(image[SECTOR : SECTOR + length]))
