"""Disks as users have them, and as nobody should: partition tables, qcow2 headers, file systems."""

from __future__ import annotations

import random
import struct
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

from vambrace.debian.tools import run
from vambrace.image.systems.partitions import ROOT_ARM64

SECTOR = 512
SWAP = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
MIB = 1 << 20
#: Type, first byte, bytes and attributes of a partition.
Row = tuple[uuid.UUID, int, int, int]


def ext4(folder: Path, out: Path, size: int = 4 * MIB) -> Path:
    """A file system with the contents of ``folder``, the same bits each time."""
    uuids = ["-U", "76616d62-7261-6365-8000-000000000001"]
    options = "hash_seed=76616d62-7261-6365-8000-000000000002,root_owner=0:0,lazy_itable_init=0"
    with out.open("wb") as file:
        file.truncate(size)
    run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "4096", *uuids, "-E", options, "-d", folder, out],
        env={"E2FSPROGS_FAKE_TIME": "1767225600"},
    )
    return out


def sample_system(folder: Path) -> Path:
    """A file system in ``folder`` with an init and some units, which are in the folder ``tree`` as well."""
    (folder / "tree/sbin").mkdir(parents=True)
    units = folder / "tree/usr/lib/systemd/system"
    units.mkdir(parents=True)
    for name in ("nginx.service", "postgresql@.service"):
        (units / name).write_text("[Service]\n")
    (folder / "tree/sbin/init").write_bytes(random.Random(1).randbytes(20000))
    return ext4(folder / "tree", folder / "root.ext4")


def gpt(size: int, rows: Sequence[Row], sector: int = SECTOR) -> bytearray:
    """A disk of ``size`` bytes with a partition table and nothing else."""
    disk = bytearray(size)
    disk[446:462] = struct.pack("<B3xB3xII", 0, 0xEE, 1, size // sector - 1)
    disk[510:512] = b"\x55\xaa"
    table = bytearray(128 * 128)
    for number, (kind, start, length, attributes) in enumerate(rows):
        first = start // sector
        entry = kind.bytes_le, bytes([number + 1]) * 16, first, first + length // sector - 1, attributes
        struct.pack_into("<16s16sQQQ", table, number * 128, *entry)
    disk[2 * sector : 2 * sector + len(table)] = table
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 1, size // sector - 1, 34, size // sector - 34, bytes(16), 2, 128, 128]
    header = struct.pack("<8sIIIIQQQQ16sQIII", *fields, zlib.crc32(table))
    disk[sector : sector + 92] = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    return disk


def mbr(size: int, rows: Sequence[tuple[int, int, int]]) -> bytearray:
    """As ``gpt``; of each row type, first byte and bytes."""
    disk = bytearray(size)
    for number, (kind, start, length) in enumerate(rows):
        place = 446 + 16 * number
        disk[place : place + 16] = struct.pack("<B3xB3xII", 0, kind, start // SECTOR, length // SECTOR)
    disk[510:512] = b"\x55\xaa"
    return disk


def root_disk(system: Path, kind: uuid.UUID = ROOT_ARM64) -> bytearray:
    """A disk with swap and the file system ``system``, as an installer makes it."""
    data = system.read_bytes()
    disk = gpt(len(data) + 3 * MIB, [(SWAP, MIB, MIB, 0), (kind, 2 * MIB, len(data), 0)])
    disk[2 * MIB : 2 * MIB + len(data)] = data
    return disk


def qcow2(raw: Path, out: Path, *options: str) -> Path:
    run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", *options, raw, out])
    return out
