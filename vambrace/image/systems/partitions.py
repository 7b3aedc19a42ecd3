"""Where a disk has its system: the partition table, GPT (UEFI 2.10, section 5) or MBR, and the root among them.

Without a number the root is the one partition that says so: of the type "root partition of arm64" (UAPI.2 Discoverable
Partitions Specification), else of "Linux data"; in an MBR, of the type 0x83.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Final

from vambrace.errors import ConfigError, ImageError

ROOT_ARM64: Final = uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae")
LINUX_DATA: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_NO_AUTO: Final = 1 << 63  # attribute: not to be found by itself
_MBR_LINUX, _MBR_GPT, _MBR_EXTENDED = 0x83, 0xEE, (0x05, 0x0F, 0x85)
_SECTORS: Final = (512, 4096)
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ")
_MAX_ENTRIES: Final = 1024


@dataclass(frozen=True)
class Partition:
    """``size`` bytes at ``offset``; ``kind`` is the type, of an MBR the byte."""

    number: int
    offset: int
    size: int
    kind: uuid.UUID | int
    automatic: bool = True


def read_table(file: BinaryIO, size: int) -> list[Partition]:
    """The partitions of a disk of ``size`` bytes; none where there is no table. Raises ``ImageError``."""
    file.seek(0)
    first = file.read(512)
    for sector in _SECTORS:
        file.seek(sector)
        header = file.read(512)
        if header.startswith(b"EFI PART"):
            return _read_gpt(file, size, sector, header)
    if len(first) < 512 or first[510:] != b"\x55\xaa":
        return []
    entries = [struct.unpack_from("<B3xB3xII", first, 446 + 16 * number) for number in range(4)]
    found = []
    for number, (flags, kind, start, count) in enumerate(entries, 1):
        if flags & 0x7F:
            return []  # program text of a boot sector, no table
        if kind == _MBR_GPT:
            raise ImageError("the disk says that it has a GPT, and has none", hint="repair it, for example with gdisk")
        if kind and count and kind not in _MBR_EXTENDED:
            found.append(Partition(number, start * 512, count * 512, kind))
    return _checked(found, size)


def find_root(partitions: list[Partition], number: int | None) -> Partition:
    """The partition with this ``number``, or the one that is a root. Raises ``ImageError``, ``ConfigError``."""
    there = ", ".join(str(each.number) for each in partitions)
    if number is not None:
        for each in partitions:
            if each.number == number:
                return each
        raise ConfigError(f"partition {number}: there is none on the disk", hint=f"there are {there or 'none at all'}")
    automatic = [each for each in partitions if each.automatic]
    for kind in (ROOT_ARM64, LINUX_DATA, _MBR_LINUX):
        roots = [each for each in automatic if each.kind == kind]
        if len(roots) == 1:
            return roots[0]
        if roots:
            break
    raise ImageError(
        "which of the disk's partitions is the root is not to be seen", hint=f"say it: 'partition: N', N of {there}"
    )


def _read_gpt(file: BinaryIO, size: int, sector: int, header: bytes) -> list[Partition]:
    damaged = ImageError("the disk's GPT is damaged", hint="repair it, for example with gdisk")
    if len(header) < 512:
        raise damaged
    (_, revision, length, check, zero, _, _, first, last, _, place, count, each, entries_check) = _HEADER.unpack_from(
        header
    )
    if revision != 0x10000 or not 92 <= length <= 512 or zero or not 0 < count <= _MAX_ENTRIES:
        raise damaged
    if each not in (128, 256, 512) or zlib.crc32(header[:16] + bytes(4) + header[20:length]) != check:
        raise damaged
    if last >= size // sector:
        raise ImageError("the disk ends before its partitions do", hint="it is cut off: copy it once more")
    if not 2 <= place <= size // sector or not first <= last:
        raise damaged
    file.seek(place * sector)
    table = file.read(count * each)
    if len(table) != count * each or zlib.crc32(table) != entries_check:
        raise damaged
    found = []
    for number in range(count):
        kind, _, start, end, attributes = _ENTRY.unpack_from(table, number * each)
        if kind == bytes(16):
            continue
        if not first <= start <= end <= last:
            raise damaged
        name = uuid.UUID(bytes_le=kind)
        place = start * sector
        found.append(Partition(number + 1, place, (end - start + 1) * sector, name, not attributes & _NO_AUTO))
    return _checked(found, size)


def _checked(found: list[Partition], size: int) -> list[Partition]:
    """All of them on the disk, and none in another's place."""
    end = 0
    for each in sorted(found, key=lambda each: each.offset):
        if each.offset < end or each.offset < 512:
            raise ImageError(f"partition {each.number} of the disk lies in another's place", hint="make the disk anew")
        end = each.offset + each.size
        if end > size:
            raise ImageError(f"partition {each.number} reaches beyond the disk's end", hint="the disk is cut off")
    return found
