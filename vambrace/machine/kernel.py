"""The header of an arm64 kernel Image (Documentation/arch/arm64/booting.rst in Linux)."""

from __future__ import annotations

import struct

from vambrace.errors import ConfigError
from vambrace.machine.layout import BLOCK, PAGE
from vambrace.record import Record

_HEADER = struct.Struct("<4s4sQQQ24s4s4s")
_MAGIC = b"ARM\x64"
_BIG_ENDIAN = 1
_LARGEST = 1 << 30


class KernelImage(Record):
    """``text_offset`` from a multiple of 2 MiB; ``size`` in memory, more than the file's."""

    text_offset: int
    size: int


def parse_image(kernel: bytes | memoryview) -> KernelImage:
    """Check the header. Raises ``ConfigError``: not an uncompressed little-endian Image of Linux 3.17 or
    newer, or a header that contradicts itself."""
    start = bytes(kernel[: _HEADER.size])
    compressed = ConfigError("the kernel is compressed", hint="give the uncompressed Image: unpack it first")
    if start[:2] == b"\x1f\x8b" or start[4:8] == b"zimg":
        raise compressed
    if len(start) < _HEADER.size or start[56:60] != _MAGIC:
        raise ConfigError("the kernel is not an arm64 Image", hint="Debian's /boot/vmlinuz for arm64 is one")
    _, _, text_offset, size, flags, _, _, _ = _HEADER.unpack(start)
    if flags & _BIG_ENDIAN:
        raise ConfigError("the kernel is big-endian", hint="give a little-endian one")
    if size == 0:
        raise ConfigError("the kernel's header has no size", hint="give Linux 3.17 or newer")
    if text_offset % PAGE or text_offset >= BLOCK or not len(kernel) <= size <= _LARGEST:
        raise ConfigError("the kernel's header contradicts itself")
    return KernelImage(text_offset, size)
