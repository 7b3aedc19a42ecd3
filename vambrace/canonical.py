"""Canonical JSON (RFC 8785, of what a configuration has), and reading it strictly: anyone may have written it."""

from __future__ import annotations

import json
from typing import Any, Final

from vambrace.errors import ConfigError

BUILD_AGAIN: Final = "build the image again"


def canonical(value: Any) -> bytes:
    """Canonical JSON (RFC 8785) of ``value``, whose keys must be ASCII and whose numbers integers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def decode_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no key twice, integers only. Raises ``ConfigError``."""

    def refuse(text: str) -> Any:
        raise ConfigError(f"configuration: {text[:20]} is not an integer", hint=BUILD_AGAIN)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ConfigError("configuration: a key appears twice", hint=BUILD_AGAIN)
        return result

    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=pairs, parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise ConfigError("configuration: not JSON", hint=BUILD_AGAIN) from None


class Object:
    """Typed access to a JSON object; every mistake is a ``ConfigError`` that names the place."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: an object is expected", hint=BUILD_AGAIN)
        self._value: dict[str, Any] = value
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def _get(self, key: str, kind: type, what: str) -> Any:
        if key not in self._value:
            raise ConfigError(f"{self._where}: {key} is missing", hint=BUILD_AGAIN)
        value = self._value[key]
        if type(value) is not kind:
            raise ConfigError(f"{self._where}: {key} must be {what}", hint=BUILD_AGAIN)
        return value

    def string(self, key: str) -> str:
        return str(self._get(key, str, "a string"))

    def integer(self, key: str) -> int:
        return int(self._get(key, int, "an integer"))

    def boolean(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def constant(self, key: str, expected: str) -> None:
        if self.string(key) != expected:
            raise ConfigError(f"{self._where}: {key} must be {expected}", hint=BUILD_AGAIN)

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._get(key, list, "a list of strings")
        if not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{self._where}: {key} must be a list of strings", hint=BUILD_AGAIN)
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._get(key, list, "a list of integers")
        if not all(type(item) is int for item in value):
            raise ConfigError(f"{self._where}: {key} must be a list of integers", hint=BUILD_AGAIN)
        return tuple(value)

    def mapping(self, key: str) -> dict[str, str]:
        value = self._get(key, dict, "an object of strings")
        if not all(isinstance(item, str) for item in value.values()):
            raise ConfigError(f"{self._where}: {key} must be an object of strings", hint=BUILD_AGAIN)
        return dict(value)

    def object(self, key: str) -> Object:
        return Object(self._get(key, dict, "an object"), f"{self._where}: {key}")

    def objects(self, key: str) -> list[Object]:
        value = self._get(key, list, "a list of objects")
        return [Object(item, f"{self._where}: {key}[{index}]") for index, item in enumerate(value)]


def unknown_keys(given: Any, known: Any, where: str = "") -> list[str]:
    """Where ``given`` has keys that ``known`` has not."""
    if isinstance(given, dict) and isinstance(known, dict):
        found = [f"{where}{key}" for key in given if key not in known]
        for key in known:
            found += unknown_keys(given.get(key), known[key], f"{where}{key}.")
        return found
    if isinstance(given, list) and isinstance(known, list):
        pairs = zip(given, known, strict=False)
        return [name for a, b in pairs for name in unknown_keys(a, b, where)]
    return []
