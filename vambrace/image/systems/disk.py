"""A disk's file → its bytes: raw as they are, qcow2 by way of qemu-img, which is told the format and bounded.

The header of a qcow2 file is read here first ([qcow2], "Header"): what would have qemu-img open another file (a backing
file, an external data file), or is encrypted, corrupt or too large, never comes so far.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from vambrace.debian import tools
from vambrace.errors import BuildError, ImageError

MAX_DISK: Final = 64 << 30  # bytes that a disk may seem to have
_QCOW2: Final = b"QFI\xfb"
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")  # to the end of version 2's
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
#: What qemu-img may use: address space in bytes, processor time and time in seconds.
_MEMORY, _SECONDS = 2 << 30, 900
#: Where other formats have what they begin with.
_OTHERS: Final = (
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"QFI", "QCOW"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard"),
)
_CONVERT: Final = "qemu-img convert -O qcow2 DISK disk.qcow2"


def raw_disk(path: Path, work: Path) -> Path:
    """The bytes of the disk in ``path``, that file itself or one in the folder ``work``.

    Raises ``ImageError`` for what is no disk that is taken, ``BuildError`` (``ToolMissing``, ``NoSpace``).
    """
    try:
        with path.open("rb") as file:
            if not path.is_file():
                raise ImageError(f"{path} is no file", hint="copy the disk into one")
            start = file.read(512)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}", hint="the disk is a raw or qcow2 file") from None
    if start.startswith(_QCOW2):
        return _unpack(path, work)
    for place, magic, name in _OTHERS:
        if start[place:].startswith(magic):
            raise ImageError(f"{path} is in the format {name}", hint=f"raw and qcow2 are taken: {_CONVERT}")
    _check_size(path, size)
    return path


def data_ranges(file: BinaryIO, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data between ``offset`` and ``offset + size``, as (offset, length); the rest is zeros."""
    descriptor, end = file.fileno(), offset + size
    while offset < end:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: none behind it
            return
        if start >= end:
            return
        stop = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        yield start, stop - start
        offset = stop


def _unpack(path: Path, work: Path) -> Path:
    check_header(path)
    found = _information(path)
    for key, what in (("backing-filename", "a backing file"), ("encrypted", "encryption"), ("dirty-flag", "a crash")):
        if found.get(key):
            raise ImageError(f"{path} has {what} behind it", hint=f"make it one whole: {_CONVERT}")
    if found.get("format") != "qcow2" or type(found.get("virtual-size")) is not int:
        raise ImageError(f"{path} is not what its header says", hint=f"make it anew: {_CONVERT}")
    _check_size(path, found["virtual-size"])
    raw = work / "disk.raw"
    _qemu_img(path, "convert", "-q", "-f", "qcow2", "-O", "raw", path.resolve(), raw)
    if raw.stat().st_size != found["virtual-size"]:
        raise ImageError(f"{path} has another size than it says", hint=f"make it anew: {_CONVERT}")
    return raw


def check_header(path: Path) -> None:
    """That qemu-img may be given the qcow2 file ``path``. Raises ``ImageError``."""
    with path.open("rb") as file:
        start = file.read(4096)
    if len(start) < 104:
        raise ImageError(f"{path} is cut off", hint="copy it once more")
    _, version, backing, _, cluster_bits, size, crypt, l1, *_ = _HEADER.unpack_from(start)
    incompatible, header = (struct.unpack_from(">Q", start, 72)[0], struct.unpack_from(">I", start, 100)[0])
    if version == 2:
        incompatible, header = 0, 72
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or not 72 <= header <= len(start) or header % 8:
        raise ImageError(f"{path} is no sound qcow2 file", hint=f"make it anew: {_CONVERT}")
    whole = f"make it one whole: {_CONVERT}"
    if backing:
        raise ImageError(f"{path} has a backing file", hint=whole)
    if incompatible & _DATA_FILE:
        raise ImageError(f"{path} has its data in another file", hint=whole)
    if crypt:
        raise ImageError(f"{path} is encrypted", hint=f"{whole}; 'encrypt' in the manifest is for a Realm's broker")
    if incompatible & (_DIRTY | _CORRUPT):
        raise ImageError(f"{path} is marked as corrupt", hint="qemu-img check -r all")
    if incompatible & ~(_COMPRESSION | _EXTENDED_L2):
        raise ImageError(f"{path} has features that are not known", hint=whole)
    _check_size(path, size)
    if l1 > (32 << 20) // 8:
        raise ImageError(f"{path} is no sound qcow2 file", hint=f"make it anew: {_CONVERT}")


def _information(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_qemu_img(path, "info", "--output=json", "-f", "qcow2", path.resolve()))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ImageError(f"{path}: qemu-img does not understand it", hint=f"make it anew: {_CONVERT}")
    specific = found.get("format-specific", {}).get("data", {})
    if specific.get("corrupt") or "data-file" in specific:
        raise ImageError(f"{path} is marked as corrupt, or has its data elsewhere", hint=f"make it anew: {_CONVERT}")
    return found


def _qemu_img(path: Path, *words: str | Path) -> str:
    bounds = [f"--as={_MEMORY}", f"--cpu={_SECONDS}", "--core=0", f"--fsize={MAX_DISK}"]
    tools.find("qemu-img")
    try:
        return tools.run(["timeout", "-k", "5", str(_SECONDS), "prlimit", *bounds, "qemu-img", *words])
    except BuildError as error:
        if type(error) is not BuildError:
            raise
        said = error.message.splitlines()[-1][-200:]
        raise ImageError(f"{path}: qemu-img does not read it: {said}", hint="qemu-img check tells more") from None


def _check_size(path: Path, size: int) -> None:
    if not 4096 <= size <= MAX_DISK:
        raise ImageError(f"{path} is a disk of {size} bytes", hint=f"from 4096 bytes to {MAX_DISK >> 30} GiB")
