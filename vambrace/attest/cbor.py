"""Deterministic CBOR (RFC 8949, 4.2.1), and a reader for what others write.

Everything here is signed or hashed, or comes from an enemy. What is ours has therefore exactly one encoding:
no indefinite lengths, no longer forms, no unsorted or repeated keys, no floats, no tag that the decoder
would act upon. Arm's tokens come from constrained devices, which may choose longer forms and any order
(as RFC 9783, 5.2 has it for their kin): ``decode_tolerant`` reads those two variations, and says that it met
one. Sizes, depth and count of items are bounded in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, calcsize
from typing import Any, Final, NamedTuple

from vambrace.errors import MalformedCbor

MAX_DEPTH: Final = 12
MAX_ITEMS: Final = 4096

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: Final = {20: False, 21: True, 22: None}
#: The longer forms of an integer, from 24 on: what reads it, its bytes, and the smallest integer that needs it.
_FORMS: Final = tuple(
    (Struct(form).unpack_from, calcsize(form), smallest)
    for form, smallest in ((">B", 24), (">H", 1 << 8), (">I", 1 << 16), (">Q", 1 << 32))
)
_INTEGERS: Final[frozenset[type]] = frozenset({int})
_KEYS: Final[frozenset[type]] = frozenset({int, str})
_BEHIND: Final = 1 << 64
_TOO_EARLY: Final = "the CBOR data ends too early"
_NO_MEANING: Final = "a float, or a simple value with no meaning here"


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
    (value,) = reader.run(1, 0)
    if reader.position != reader.size:
        raise MalformedCbor("bytes follow the end of the CBOR data")
    return Decoded(value, reader.variation)


class _Reader:
    """Reads runs of items: every token passes here, most of its bytes several times, and calls are what takes time."""

    __slots__ = ("data", "items", "position", "size", "variation")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.position = 0
        self.items = 0
        self.variation: str | None = None

    def run(self, count: int, depth: int) -> list[Any]:
        """The next ``count`` items."""
        self.enter(count, depth)
        data, size, position, forms = self.data, self.size, self.position, _FORMS
        values: list[Any] = []
        add = values.append
        for _ in range(count):
            if position >= size:
                raise MalformedCbor(_TOO_EARLY)
            initial = data[position]
            position += 1
            if initial < 24:
                add(initial)
                continue
            major, argument = initial >> 5, initial & 31
            if argument > 23:
                if argument > 27:
                    raise MalformedCbor("an indefinite length, or a reserved form of CBOR")
                read, length, smallest = forms[argument - 24]
                start, position = position, position + length
                if position > size or major == _SIMPLE:
                    raise MalformedCbor(_NO_MEANING if major == _SIMPLE else _TOO_EARLY)
                (argument,) = read(data, start)
                if argument < smallest:
                    self.vary("an integer is not in its shortest form")
            if _BYTES <= major <= _TEXT:
                end = position + argument
                if end > size:
                    raise MalformedCbor(_TOO_EARLY)
                part = data[position:end]
                add(part if major == _BYTES else _text(part))
                position = end
            elif major == _UINT:
                add(argument)
            elif major == _NEGATIVE:
                add(-1 - argument)
            elif major == _SIMPLE:
                add(_simple(argument))
            else:
                self.position = position
                add(self.container(major, argument, depth + 1))
                position = self.position
        self.position = position
        return values

    def enter(self, count: int, depth: int) -> None:
        """Refuse items before any of them is read: each has at least one byte."""
        if count > self.size - self.position:
            raise MalformedCbor(_TOO_EARLY)
        self.items += count
        if self.items > MAX_ITEMS or depth > MAX_DEPTH:
            raise MalformedCbor("the CBOR data is too deep or has too many items")

    def container(self, major: int, argument: int, depth: int) -> Any:
        if major == _MAP:
            return self.map(argument, depth)
        if major == _ARRAY:
            return self.run(argument, depth)
        return Tag(argument, self.run(1, depth)[0])

    def map(self, pairs: int, depth: int) -> dict[int | str, Any]:
        flat = self.run(2 * pairs, depth)
        keys = flat[::2]
        kinds = set(map(type, keys))
        if not kinds <= _KEYS:  # a bool is not one of them
            raise MalformedCbor("the key of a map is neither an integer nor a text")
        result = dict(zip(keys, flat[1::2], strict=True))
        if len(result) != pairs:
            raise MalformedCbor("a map has a key twice")
        if pairs > 1:
            order = _order_of_integers(keys) if kinds == _INTEGERS else [_order(key) for key in keys]
            if order != sorted(order):
                self.vary("the keys of a map are not in order")
        return result

    def vary(self, how: str) -> None:
        self.variation = self.variation or how


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedCbor("a text is not UTF-8") from None


def _simple(value: int) -> bool | None:
    if value not in _SIMPLE_VALUES:
        raise MalformedCbor(_NO_MEANING)
    return _SIMPLE_VALUES[value]


def _order_of_integers(keys: list[int]) -> list[Any]:
    """As ``_order``: the shortest encodings of negative integers follow those of all others."""
    return [key if key >= 0 else _BEHIND - key for key in keys]


def _order(key: int | str) -> tuple[int, int, bytes]:
    """Sorts as the shortest encodings of keys do, byte by byte (RFC 8949, 4.2.1)."""
    if isinstance(key, int):
        return (_UINT, key, b"") if key >= 0 else (_NEGATIVE, -key, b"")
    text = key.encode()
    return _TEXT, len(text), text
