"""Deterministic CBOR (RFC 8949, 4.2.1), and nothing else of CBOR.

Everything here is signed or hashed, or comes from an enemy. One value therefore has exactly one encoding:
no indefinite lengths, no longer forms, no unsorted or repeated keys, no floats, no tag that the decoder
would act upon. Sizes, depth and count of items are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vambrace.errors import MalformedEvidence

MAX_DEPTH: Final = 12
MAX_ITEMS: Final = 4096

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: Final = {20: False, 21: True, 22: None}


@dataclass(frozen=True)
class Tag:
    """A tagged value (RFC 8949, 3.4); its meaning is the caller's business."""

    number: int
    value: Any


def encode(value: Any) -> bytes:
    """The one encoding of ``value``: int, bytes, str, bool, None, Tag, and lists and dicts of them."""
    match value:
        case False:
            return b"\xf4"
        case True:
            return b"\xf5"
        case None:
            return b"\xf6"
        case int():
            return _head(_UINT, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case list() | tuple():
            return _head(_ARRAY, len(value)) + b"".join(encode(item) for item in value)
        case dict():
            pairs = sorted((encode(key), encode(item)) for key, item in value.items())
            return _head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)
        case Tag():
            return _head(_TAG, value.number) + encode(value.value)
        case _:
            raise TypeError(f"{type(value).__name__} has no encoding here")


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for index, size in enumerate((1, 2, 4, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | 24 + index]) + argument.to_bytes(size, "big")
    raise ValueError("an integer of more than 64 bits has no encoding here")


def decode(data: bytes, *, limit: int) -> Any:
    """The value that ``data``, at most ``limit`` bytes, encodes. Maps have int or str keys only.

    Raises ``MalformedEvidence`` for anything that ``encode`` would not have written.
    """
    if len(data) > limit:
        raise MalformedEvidence(f"{len(data)} bytes: at most {limit} are accepted")
    reader = _Reader(bytes(data))
    value = reader.value(0)
    if reader.position != len(reader.data):
        raise MalformedEvidence("bytes follow the end of the CBOR data")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.items = 0

    def value(self, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise MalformedEvidence("the CBOR data is too deep or has too many items")
        major, argument = self.head()
        if major == _UINT:
            return argument
        if major == _NEGATIVE:
            return -1 - argument
        if major == _BYTES:
            return self.take(argument)
        if major == _TEXT:
            return self.text(argument)
        if major == _ARRAY:
            return [self.value(depth + 1) for _ in range(self.count(argument))]
        if major == _MAP:
            return self.map(self.count(argument), depth)
        if major == _TAG:
            return Tag(argument, self.value(depth + 1))
        if argument not in _SIMPLE_VALUES:
            raise MalformedEvidence("a float, or a simple value with no meaning here")
        return _SIMPLE_VALUES[argument]

    def head(self) -> tuple[int, int]:
        initial = self.take(1)[0]
        major, information = initial >> 5, initial & 31
        if information < 24:
            return major, information
        if information > 27 or major == _SIMPLE:
            raise MalformedEvidence("an indefinite length, a float or a reserved form of CBOR")
        size = 1 << information - 24
        argument = int.from_bytes(self.take(size), "big")
        if argument < (24 if size == 1 else 1 << 4 * size):
            raise MalformedEvidence("an integer is not in its shortest form")
        return major, argument

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise MalformedEvidence("the CBOR data ends too early")
        part = self.data[self.position : end]
        self.position = end
        return part

    def count(self, announced: int) -> int:
        # Each item has at least one byte: refuse a promise that cannot be kept before acting upon it.
        if announced > len(self.data) - self.position:
            raise MalformedEvidence("the CBOR data ends too early")
        return announced

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedEvidence("a text is not UTF-8") from None

    def map(self, pairs: int, depth: int) -> dict[int | str, Any]:
        result: dict[int | str, Any] = {}
        last = b""
        for _ in range(pairs):
            start = self.position
            key = self.value(depth + 1)
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise MalformedEvidence("the key of a map is neither an integer nor a text")
            encoded = self.data[start : self.position]
            if encoded <= last:
                raise MalformedEvidence("the keys of a map are repeated or not in order")
            last = encoded
            result[key] = self.value(depth + 1)
        return result
