"""The smallest useful part of tar (POSIX.1-1988 ustar): regular files, nothing else.

A bundle comes from anyone, and a general tar reader follows links, extended headers and sparse maps. This one
knows none of them. The writer gives the same bytes for the same members: time and owner are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Final

from vambrace.errors import ImageError

BLOCK: Final = 512
NO_BUNDLE: Final = "give the file of 'image build'; of a container 'image build --container' makes one"
BUILD_AGAIN: Final = "build the image again, with 'vambrace image build'"
_END: Final = bytes(2 * BLOCK)
_RECORD: Final = 20 * BLOCK  # what tar may fill up with zeros
_MAX_SIZE: Final = 8 << 30  # 11 octal digits
_CHECKSUM: Final = slice(148, 156)


def write_member(out: BinaryIO, name: str, size: int, copy: Callable[[BinaryIO], None]) -> None:
    """Append a file; ``copy`` writes exactly ``size`` bytes of content. Raises ``ImageError``."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= _MAX_SIZE:
        raise ImageError(f"{name}: too large for a bundle", hint="a part of an image has at most 8 GiB")
    header = bytearray(BLOCK)
    header[: len(encoded)] = encoded
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[_CHECKSUM] = b"%06o\0 " % _checksum(header)
    out.write(header)
    start = out.tell()
    copy(out)
    if out.tell() - start != size:
        raise ImageError(f"{name}: changed while it was packed", hint="try again")
    out.write(bytes(-size % BLOCK))


def write_end(out: BinaryIO) -> None:
    out.write(_END)


def read_members(file: BinaryIO, *, most: int) -> dict[str, tuple[int, int]]:
    """Name → (offset of the content, size in bytes) of each member of the tar ``file``.

    Raises ``ImageError`` for more than ``most`` members, a name twice, anything but regular files, or anything
    behind the end.
    """
    file.seek(0, 2)
    total = file.tell()
    members: dict[str, tuple[int, int]] = {}
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) != BLOCK:
            raise ImageError("the bundle is cut off", hint="send or build it again")
        if header == bytes(BLOCK):
            if total - position > _RECORD or file.read().strip(b"\0"):
                raise ImageError("the bundle has something behind its end", hint=BUILD_AGAIN)
            return members
        name, size = _parse(header)
        if name in members:
            raise ImageError(f"the bundle holds {name} twice", hint=BUILD_AGAIN)
        if len(members) >= most:
            raise ImageError(f"the bundle holds more than {most} files", hint=BUILD_AGAIN)
        start = position + BLOCK
        if start + size > total:
            raise ImageError("the bundle is cut off", hint="send or build it again")
        members[name] = (start, size)
        position = start + size + -size % BLOCK


def _parse(header: bytes) -> tuple[str, int]:
    if _octal(header[_CHECKSUM]) != _checksum(header) or header[257:263] != b"ustar\0":
        raise ImageError("not a bundle: no tar header where one must be", hint=NO_BUNDLE)
    if header[156:157] not in (b"0", b"\0"):
        raise ImageError("not a bundle: it holds something that is not a regular file", hint=NO_BUNDLE)
    if header[345:500].strip(b"\0"):
        raise ImageError("the bundle holds a file with a long name", hint=BUILD_AGAIN)
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise ImageError("the bundle holds a file with a strange name", hint=BUILD_AGAIN) from None
    if not name or not name.isprintable():
        raise ImageError("the bundle holds a file with a strange name", hint=BUILD_AGAIN)
    return name, _octal(header[124:136])


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise ImageError("not a bundle: a tar header is damaged", hint=NO_BUNDLE)
    return int(digits, 8)


def _checksum(header: bytes | bytearray) -> int:
    return sum(header[: _CHECKSUM.start]) + 8 * ord(" ") + sum(header[_CHECKSUM.stop :])
