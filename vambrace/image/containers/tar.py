"""The members of a layer: tar as POSIX.1-2001 has it (ustar, pax), and GNU tar's long names and numbers.

Of a general tar reader a layer needs this much only. Each header is read once, extended ones up to a bound, and
contents not at all: a member says where they begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from vambrace.errors import ImageError

BLOCK: Final = 512
MAX_EXTENDED: Final = 1 << 20  # bytes of the extended headers and long names of one member
MAX_HEADERS: Final = 8  # of these, before one member
MAX_ID: Final = (1 << 24) - 1  # of a user or group: as many as a container has, see vambrace.container
FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO = "file", "link", "symlink", "char", "block", "dir", "fifo"
_KINDS: Final = {
    b"\0": FILE,
    b"0": FILE,
    b"1": LINK,
    b"2": SYMLINK,
    b"3": CHARACTER,
    b"4": BLOCK_DEVICE,
    b"5": FOLDER,
    b"6": FIFO,
    b"7": FILE,
}
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_XATTR = "SCHILY.xattr."
_CHECKSUM: Final = slice(148, 156)
_AGAIN: Final = "save or push the image again"


@dataclass
class Member:
    """One entry. ``name`` and ``link`` are as they stand there; ``mtime`` in nanoseconds; ``offset`` of its content."""

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    link: bytes
    offset: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)


def read_members(file: BinaryIO) -> Iterator[Member]:
    """The members of the tar ``file``, in order. Raises ``ImageError`` for what is no tar, or cut off."""
    total = file.seek(0, 2)
    position = 0
    pax: dict[str, bytes] = {}
    headers = extended = 0
    while position + BLOCK <= total:
        file.seek(position)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            break
        position += BLOCK
        _check(header)
        kind = header[156:157]
        size = _number(header[124:136], "size")
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            headers, extended = headers + 1, extended + size
            if headers > MAX_HEADERS:
                raise ImageError(f"a layer has more than {MAX_HEADERS} headers before a member", hint=_AGAIN)
            if extended > MAX_EXTENDED:
                raise ImageError(f"a layer has a header of {extended} bytes", hint=f"at most {MAX_EXTENDED} are read")
            pax.update(_extended(file, kind, size))
        else:
            member = _member(header, pax)
            member.offset = position
            size = member.size
            pax, headers, extended = {}, 0, 0
            yield member
        position += size + -size % BLOCK
        if position > total:
            raise ImageError("a layer is cut off", hint=_AGAIN)
    if pax or (position == 0 and 0 < total < BLOCK):
        raise ImageError("a layer is cut off", hint=_AGAIN)


def _member(header: bytes, pax: dict[str, bytes]) -> Member:
    kind = _KINDS.get(header[156:157])
    if kind is None or any(key.startswith("GNU.sparse.") for key in pax):
        raise ImageError("a layer holds something that no container needs: a sparse file, or of an unknown type")
    name = pax.get("path") or _name(header)
    if kind == FILE and name.endswith(b"/"):
        kind = FOLDER
    size = _decimal(pax["size"], "size") if "size" in pax else _number(header[124:136], "size")
    return Member(
        name=name,
        kind=kind,
        mode=_number(header[100:108], "mode") & 0o7777,
        uid=_identity(header[108:116], pax.get("uid"), "user"),
        gid=_identity(header[116:124], pax.get("gid"), "group"),
        mtime=_time(pax["mtime"]) if "mtime" in pax else _seconds(_number(header[136:148], "time", signed=True)),
        # Only files have contents; a link's size in old archives is that of the file that it leads to.
        size=size if kind == FILE else 0,
        link=pax.get("linkpath") or header[157:257].split(b"\0", 1)[0],
        xattrs={key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)},
    )


def _check(header: bytes) -> None:
    checksum = sum(header[: _CHECKSUM.start]) + 8 * ord(" ") + sum(header[_CHECKSUM.stop :])
    if header[257:262] != b"ustar" or _number(header[_CHECKSUM], "checksum") != checksum:
        raise ImageError("a layer is no tar archive, or damaged", hint=_AGAIN)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(file: BinaryIO, kind: bytes, size: int) -> dict[str, bytes]:
    """What an extended header says of the member that follows it."""
    data = file.read(size)
    if len(data) != size:
        raise ImageError("a layer is cut off", hint=_AGAIN)
    if kind == _LONG_NAME:
        return {"path": data.rstrip(b"\0")}
    if kind == _LONG_LINK:
        return {"linkpath": data.rstrip(b"\0")}
    records = _records(data)
    if kind == _PAX_GLOBAL:
        if set(records) - {"comment"}:
            raise ImageError("a layer has a header for all members behind it", hint="no tool for images makes these")
        return {}
    return records


def _records(data: bytes) -> dict[str, bytes]:
    """Those of a pax header: ``length key=value\\n``, one behind the other."""
    found: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        end = data.find(b" ", position, position + 12)
        digits = data[position:end] if end > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not digits or len(record) != length or not equals or not value.endswith(b"\n"):
            raise ImageError("a layer has a damaged header", hint=_AGAIN)
        found[key.decode("utf-8", "surrogateescape")] = value[:-1]
        position += length
    return found


def _number(field_: bytes, what: str, *, signed: bool = False) -> int:
    """Octal digits, or GNU's binary form."""
    if field_[0] & 0x80:
        value = int.from_bytes(bytes([field_[0] & 0x7F]) + field_[1:])
        if field_[0] & 0x40:
            value -= 1 << (8 * len(field_) - 1)
    else:
        digits = field_.strip(b"\0 ").split(b"\0", 1)[0]
        if digits.strip(b"01234567"):
            raise ImageError(f"a layer has a damaged header: {what}", hint=_AGAIN)
        value = int(digits or b"0", 8)
    if not (-(1 << 62) if signed else 0) <= value < 1 << 62:
        raise ImageError(f"a layer has an impossible {what} in a header")
    return value


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ImageError(f"a layer has an impossible {what} in a header")
    return int(text)


def _identity(field_: bytes, pax: bytes | None, what: str) -> int:
    value = _number(field_, what) if pax is None else _decimal(pax, what)
    if value > MAX_ID:
        raise ImageError(f"a layer holds a file of {what} {value}", hint=f"a container has those up to {MAX_ID}")
    return value


def _time(text: bytes) -> int:
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 11 or not (fraction + b"0").isdigit():
        raise ImageError("a layer has an impossible time in a header")
    value = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return 0 if text.startswith(b"-") else value


def _seconds(value: int) -> int:
    """Nanoseconds; a time that no file system has is its beginning."""
    return value * 10**9 if 0 <= value < 1 << 34 else 0
