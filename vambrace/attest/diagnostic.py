"""A token in diagnostic notation (RFC 8949, 8; embedded CBOR as in RFC 8610, G.3), with what its keys mean as comments.

Only that it is CBOR is asked of it: this is for looking at tokens that no verifier accepts, too. Nothing is verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vambrace.attest import claims as c
from vambrace.attest.cbor import Decoded, Tag, decode_tolerant
from vambrace.attest.cca import BOOT_KEY_NAMES, DEVICE_NAMES
from vambrace.attest.token import MAX_TOKEN, PLATFORM, REALM
from vambrace.errors import MalformedCbor


@dataclass(frozen=True)
class _Place:
    """What may stand somewhere: names of the keys of a map, and the places of its values or of the items of an array.

    ``every`` is the place of those that ``inside`` does not tell; ``embedded``: a byte string there holds CBOR.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    inside: Mapping[int, _Place] = field(default_factory=dict)
    every: _Place | None = None
    embedded: bool = False


_ANY: Final = _Place()
_HEADER_NAMES: Final = {1: "algorithm", 3: "content type", 4: "key id", 16: "type", 33: "x5chain", 34: "x5t"}
_KEY_NAMES: Final = {1: "type", 2: "id", 3: "algorithm", 4: "operations", -1: "curve", -2: "x", -3: "y"}
_KEY: Final = _Place(_KEY_NAMES, embedded=True)
_LISTS: Final = {c.COMPONENTS: c.COMPONENT_NAMES, c.EXTENSIONS: DEVICE_NAMES, c.BOOT_KEYS: BOOT_KEY_NAMES}
_IN_PLATFORM: Final = {key: _Place(every=_Place(names)) for key, names in _LISTS.items()}
_PLATFORM: Final = _Place(c.PLATFORM_NAMES, _IN_PLATFORM, embedded=True)
_REALM: Final = _Place(c.REALM_NAMES, {c.RAK: _KEY}, embedded=True)


def diagnostic(token: bytes) -> str:
    """Lines of text, ASCII only. Raises ``MalformedCbor``."""
    value, variation = decode_tolerant(token, limit=MAX_TOKEN)
    comment = f"/ {variation} /\n" if variation else ""
    halves = {PLATFORM: _half(_PLATFORM), REALM: _half(_REALM)}
    place = _Place({PLATFORM: "platform token", REALM: "realm token"}, halves)
    return comment + _render(value, place, "")


def _half(payload: _Place) -> _Place:
    """A COSE_Sign1 in a byte string, or in a record of which that is the second part."""
    headers = {0: _Place(_HEADER_NAMES, embedded=True), 1: _Place(_HEADER_NAMES)}
    message = {**headers, 2: payload}
    return _Place(inside={**message, 1: _Place(_HEADER_NAMES, message, embedded=True)}, embedded=True)


def _render(value: Any, place: _Place, pad: str) -> str:
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case int():
            return str(value)
        case str():
            return json.dumps(value)
        case bytes():
            return _bytes(value, place, pad)
        case Tag(number=number, value=inner):
            return f"{number}({_render(inner, place, pad)})"
        case list():
            items = [_render(item, _inside(place, index), pad + "  ") for index, item in enumerate(value)]
            return _block("[", items, "]", pad)
        case dict():
            items = [_pair(key, item, place, pad + "  ") for key, item in value.items()]
            return _block("{", items, "}", pad)
        case _:
            raise TypeError(f"{type(value).__name__} is nothing that the decoder gives")


def _bytes(value: bytes, place: _Place, pad: str) -> str:
    inner = _embedded(value) if place.embedded else None
    if inner is None:
        return f"h'{value.hex()}'"
    comment = f"/ {inner.variation} / " if inner.variation else ""
    return f"<< {comment}{_render(inner.value, place, pad)} >>"


def _embedded(value: bytes) -> Decoded | None:
    try:
        return decode_tolerant(value, limit=MAX_TOKEN)
    except MalformedCbor:
        return None


def _pair(key: int | str, value: Any, place: _Place, pad: str) -> str:
    name = place.names.get(key) if isinstance(key, int) else None
    comment = f"/ {name} / " if name else ""
    inside = _inside(place, key) if isinstance(key, int) else _ANY
    return f"{comment}{_render(key, _ANY, pad)}: {_render(value, inside, pad)}"


def _inside(place: _Place, key: int) -> _Place:
    return place.inside.get(key, place.every or _ANY)


def _block(start: str, items: list[str], end: str, pad: str) -> str:
    """On one line where that is short, else an item a line."""
    line = f"{start}{', '.join(items)}{end}"
    if len(pad) + len(line) <= 100 and "\n" not in line:
        return line
    lines = ",\n".join(f"{pad}  {item}" for item in items)
    return f"{start}\n{lines}\n{pad}{end}"
