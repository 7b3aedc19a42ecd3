"""Deterministic CBOR (RFC 8949, 4.2.1), and a reader for what others write.

Everything here is signed or hashed, or comes from an enemy. What is ours has therefore exactly one encoding:
no indefinite lengths, no longer forms, no unsorted or repeated keys, no floats, no tag that the decoder
would act upon. Arm's tokens come from constrained devices, which may choose longer forms and any order
(as RFC 9783, 5.2 has it for their kin): ``decode_tolerant`` reads those two variations, and says that it met
one. Sizes, depth and count of items are bounded in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vambrace.errors import MalformedCbor

MAX_DEPTH: Final = 12
MAX_ITEMS: Final = 4096

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: Final = {20: False, 21: True, 22: None}


@dataclass(frozen=True)
class Tag:
    """A tagged value (RFC 8949, 3.4); its meaning is the caller's business."""

    number: int
    value: Any


class Decoded(NamedTuple):
    """A value, and the first way in which its encoding is not deterministic, if there is one."""

    value: Any
    variation: str | None


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
            return head(_UINT, value) if value >= 0 else head(_NEGATIVE, -1 - value)
        case bytes():
            return head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return head(_TEXT, len(text)) + text
        case list() | tuple():
            return head(_ARRAY, len(value)) + b"".join(encode(item) for item in value)
        case dict():
            pairs = sorted((encode(key), encode(item)) for key, item in value.items())
            return head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)
        case Tag():
            return head(_TAG, value.number) + encode(value.value)
        case _:
            raise TypeError(f"{type(value).__name__} has no encoding here")


def head(major: int, argument: int) -> bytes:
    """The shortest head (RFC 8949, 3) of an item of type ``major``."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for index, size in enumerate((1, 2, 4, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | 24 + index]) + argument.to_bytes(size, "big")
    raise ValueError("an integer of more than 64 bits has no encoding here")


def decode(data: bytes, *, limit: int) -> Any:
    """The value that ``data``, at most ``limit`` bytes, encodes. Maps have int or str keys only.

    Raises ``MalformedCbor`` for anything that ``encode`` would not have written.
    """
    value, variation = decode_tolerant(data, limit=limit)
    if variation is not None:
        raise MalformedCbor(variation)
    return value


def decode_tolerant(data: bytes, *, limit: int) -> Decoded:
    """As ``decode``, but integers and lengths may have longer forms, and the keys of a map any order.

    Raises ``MalformedCbor``, for a key that a map has twice, too.
    """
    if len(data) > limit:
        raise MalformedCbor(f"{len(data)} bytes: at most {limit} are accepted")
    reader = _Reader(bytes(data))
    value = reader.value(0)
    if reader.position != reader.size:
        raise MalformedCbor("bytes follow the end of the CBOR data")
    return Decoded(value, reader.variation)


class _Reader:
    """Every token passes here, most of its bytes several times: ``value`` trades calls for length."""

    __slots__ = ("data", "items", "position", "size", "variation")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.position = 0
        self.items = 0
        self.variation: str | None = None

    def value(self, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS or depth > MAX_DEPTH:
            raise MalformedCbor("the CBOR data is too deep or has too many items")
        position = self.position
        if position >= self.size:
            raise MalformedCbor("the CBOR data ends too early")
        initial = self.data[position]
        major, argument = initial >> 5, initial & 31
        self.position = position + 1
        if argument > 23:
            argument = self.long_argument(major, argument)
        if major == _BYTES:
            return self.take(argument)
        if major == _UINT:
            return argument
        if major == _TEXT:
            return self.text(argument)
        if major == _MAP:
            return self.map(argument, depth + 1)
        if major == _ARRAY:
            return [self.value(depth + 1) for _ in range(self.count(argument))]
        if major == _NEGATIVE:
            return -1 - argument
        if major == _TAG:
            return Tag(argument, self.value(depth + 1))
        if argument not in _SIMPLE_VALUES:
            raise MalformedCbor("a float, or a simple value with no meaning here")
        return _SIMPLE_VALUES[argument]

    def long_argument(self, major: int, information: int) -> int:
        if information > 27:
            raise MalformedCbor("an indefinite length, or a reserved form of CBOR")
        if major == _SIMPLE:
            raise MalformedCbor("a float, or a simple value with no meaning here")
        size = 1 << information - 24
        argument = int.from_bytes(self.take(size), "big")
        if argument < (24 if size == 1 else 1 << 4 * size):
            self.vary("an integer is not in its shortest form")
        return argument

    def take(self, count: int) -> bytes:
        position = self.position
        end = position + count
        if end > self.size:
            raise MalformedCbor("the CBOR data ends too early")
        self.position = end
        return self.data[position:end]

    def count(self, announced: int) -> int:
        # Each item has at least one byte: refuse a promise that cannot be kept before acting upon it.
        if announced > self.size - self.position:
            raise MalformedCbor("the CBOR data ends too early")
        return announced

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedCbor("a text is not UTF-8") from None

    def map(self, pairs: int, depth: int) -> dict[int | str, Any]:
        result: dict[int | str, Any] = {}
        last = b""
        for _ in range(self.count(pairs)):
            start = self.position
            key = self.value(depth)
            if type(key) is not int and type(key) is not str:  # a bool is an int for isinstance
                raise MalformedCbor("the key of a map is neither an integer nor a text")
            if key in result:
                raise MalformedCbor("a map has a key twice")
            encoded = self.data[start : self.position]
            if encoded < last:
                self.vary("the keys of a map are not in order")
            last = encoded
            result[key] = self.value(depth)
        return result

    def vary(self, how: str) -> None:
        self.variation = self.variation or how
