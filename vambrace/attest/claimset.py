"""Typed access to a map of claims that anyone may have written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn, TypeVar

from vambrace.errors import MalformedClaim

MAX_TEXT: Final = 128
HASH_BYTES: Final = {"sha-256": 32, "sha-384": 48, "sha-512": 64, "sm3": 32}

Kind = TypeVar("Kind", bytes, str, int, bool, list[Any])

_KINDS: Final[dict[type, str]] = {
    bytes: "a byte string",
    str: "a text",
    int: "an integer",
    bool: "a truth value",
    list: "an array",
    dict: "a map",
}


class ClaimSet:
    """``finish`` refuses what was not asked for: nothing is ignored. Every method raises ``MalformedClaim``.

    ``half`` says in errors what these are the claims of, ``names`` what their keys mean.
    """

    def __init__(self, claims: Any, half: str, names: Mapping[int, str]) -> None:
        self.half = half
        self._names = names
        self._asked: set[int | str] = set()
        if not isinstance(claims, dict):
            self.refuse(f"the {half} is not a map of claims")
        self._claims: Mapping[Any, Any] = claims

    def has(self, key: int) -> bool:
        return key in self._claims

    def get(self, key: int, kind: type[Kind]) -> Kind:
        self._asked.add(key)
        value = self._claims.get(key)
        # Exactly this type: a bool is an int for isinstance.
        if type(value) is not kind:
            self._refuse_type(key, value, kind)
        return value

    def octets(self, key: int, *sizes: int) -> bytes:
        """A byte string of one of ``sizes``."""
        value = self.get(key, bytes)
        if len(value) not in sizes:
            self.refuse(f"{self.name(key)} has {len(value)} bytes, not {_either(sizes)}", key)
        return value

    def filled(self, key: int) -> bytes:
        """A byte string that is not empty."""
        value = self.get(key, bytes)
        if not value:
            self.refuse(f"{self.name(key)} is empty", key)
        return value

    def text(self, key: int, *, least: int = 1) -> str:
        value = self.get(key, str)
        # Printed by the user's tools: no control characters, nothing that redraws a terminal.
        if not least <= len(value) <= MAX_TEXT or not value.isascii() or not value.isprintable():
            self.refuse(f"{self.name(key)} is not a short printable text", key)
        return value

    def text_or_none(self, key: int) -> str | None:
        """A text that may be missing, or empty, which says as much."""
        return (self.text(key, least=0) or None) if self.has(key) else None

    def hash_name(self, key: int) -> str:
        value = self.text(key)
        if value not in HASH_BYTES:
            self.refuse(f"{self.name(key)} names a hash that is not known", key)
        return value

    def one_of(self, key: int, values: Collection[int]) -> int:
        value = self.get(key, int)
        if value not in values:
            self.refuse(f"{self.name(key)} is {value}, not {_either(values)}", key)
        return value

    def maps(self, key: int, half: str, names: Mapping[int, str], most: int) -> list[ClaimSet]:
        """An array of 1 to ``most`` maps of claims, each of a ``half``; ``names`` are those of its keys."""
        items = self.get(key, list)
        if not 1 <= len(items) <= most:
            self.refuse(f"{self.name(key)} has {len(items)} entries: from 1 to {most} are accepted", key)
        return [ClaimSet(item, half, names) for item in items]

    def finish(self) -> None:
        if len(self._asked) != len(self._claims):  # what was asked for is there
            unknown = sorted(str(key)[:32] for key in self._claims if key not in self._asked)
            self.refuse(f"the {self.half} has claims that are not known: {unknown[0]!a}")

    def _refuse_type(self, key: int, value: object, kind: type) -> NoReturn:
        if key not in self._claims:
            self.refuse(f"{self.name(key)} is missing", key)
        self.refuse(f"{self.name(key)} is {_KINDS.get(type(value), 'of another type')}, not {_KINDS[kind]}", key)

    def name(self, key: int) -> str:
        meaning = self._names.get(key)
        return f"claim {key} ({meaning}) of the {self.half}" if meaning else f"claim {key} of the {self.half}"

    def refuse(self, message: str, key: int | None = None) -> NoReturn:
        raise MalformedClaim(message, half=self.half, claim=key)


def _either(values: Collection[int]) -> str:
    return " or ".join(str(value) for value in sorted(values))
