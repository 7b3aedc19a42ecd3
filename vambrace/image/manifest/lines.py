"""YAML that knows its lines: what is wrong with a manifest is told with where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import yaml

from vambrace.checks import check_integer, check_name
from vambrace.errors import ConfigError

Made = TypeVar("Made")

#: What to do about a file that is not there; a command line may have named it as well.
CORRECT_PATH: Final = "correct the path; one in a manifest begins at the manifest's folder"


class Mapping:
    """A YAML mapping that knows its lines. What was not asked for when ``done`` is called was unknown."""

    def __init__(self, node: yaml.Node, where: str) -> None:
        self.line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{where}: a mapping of keys to values is expected", line=self.line)
        self._where = where
        self._values: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        self._asked: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise ConfigError(f"{where}: keys must be words", line=line)
            if key.value in self._values:
                raise ConfigError(f"{where}: {key.value} appears twice", line=line)
            self._values[key.value] = value
            self._lines[key.value] = line

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Give errors raised inside the line of ``key``."""
        try:
            yield
        except ConfigError as error:
            if error.line is not None:
                raise
            raise ConfigError(error.message, hint=error.hint, line=self._lines.get(key, self.line)) from None

    def done(self) -> None:
        """Raise ``ConfigError`` for a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                known = ", ".join(sorted(self._asked))
                raise ConfigError(
                    f"{self._where}: unknown key {key[:40]!r}",
                    hint=f"known are {known}",
                    line=self._lines[key],
                )

    def is_text(self, key: str) -> bool:
        node = self._values.get(key)
        return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"

    def scalar(self, key: str, default: str | int | bool | None = None) -> Any:
        """A string, an integer or a boolean, as YAML resolves it."""
        node = self._get(key)
        if node is None:
            if default is None:
                raise self._missing(key)
            return default
        return _scalar(node, f"{self._where}: {key}")

    def string(self, key: str, default: str | None = None) -> str:
        return str(self._typed(key, str, default, "text"))

    def integer(self, key: str, default: int) -> int:
        return int(self._typed(key, int, default, "a whole number"))

    def number(self, key: str, least: int, most: int, default: int) -> int:
        """A whole number from ``least`` to ``most``."""
        with self.at(key):
            value = self.integer(key, default)
            check_integer(value, least, most, key)
            return value

    def name(self, what: str, key: str = "name") -> str:
        """The name of ``what`` this mapping is."""
        with self.at(key):
            value = self.string(key)
            check_name(value, what)
            return value

    def boolean(self, key: str, default: bool) -> bool:
        return bool(self._typed(key, bool, default, "true or false"))

    def strings(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        items = self._list(key, required=required)
        return tuple(_string(item, f"{self._where}: {key}") for item in items)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; it may be missing."""
        found = []
        for node in self._list(key, required=False):
            value = _scalar(node, f"{self._where}: {key}")
            if type(value) is not int:
                raise ConfigError(f"{self._where}: {key}: whole numbers are expected", line=node.start_mark.line + 1)
            found.append(value)
        return tuple(found)

    def mapping(self, key: str) -> dict[str, str]:
        inner = self.map(key)
        if inner is None:
            return {}
        return {name: _string(node, f"{self._where}: {key}: {name}") for name, node in inner._values.items()}

    def map(self, key: str) -> Mapping | None:
        node = self._get(key)
        return None if node is None else Mapping(node, key)

    def choice_and_number(
        self, key: str, make: Callable[[str, int], Made], choice: tuple[str, Sequence[str]], number: str
    ) -> Made | None:
        """``make`` of the two that the mapping at ``key`` has: a choice, the first one unless given, and a number, 0
        unless given.

        What ``make`` finds wrong stands at the number, unless the choice is none; None where there is no mapping.
        """
        item = self.map(key)
        if item is None:
            return None
        name, choices = choice
        chosen, value = item.string(name, choices[0]), item.integer(number, 0)
        with item.at(number if chosen in choices else name):
            made = make(chosen, value)
        item.done()
        return made

    def maps(self, key: str, *, required: bool = True) -> list[Mapping]:
        return [Mapping(item, f"{key}[{number}]") for number, item in enumerate(self._list(key, required=required))]

    def words_or_maps(self, key: str) -> list[str | Mapping]:
        """A list of words and mappings; it may be missing."""
        items = enumerate(self._list(key, required=False))
        return [
            _string(item, f"{self._where}: {key}")
            if isinstance(item, yaml.ScalarNode)
            else Mapping(item, f"{key}[{number}]")
            for number, item in items
        ]

    def _missing(self, key: str) -> ConfigError:
        """Where a key that nobody has asked for yet looks like ``key``, it is that one, mistyped."""
        unasked = [other for other in self._values if other not in self._asked and len(other) < 2 * len(key)]
        mistyped = get_close_matches(key, unasked, 1)
        hint = f"line {self._lines[mistyped[0]]} says {mistyped[0]!r}" if mistyped else None
        return ConfigError(f"{self._where}: {key} is missing", hint=hint, line=self.line)

    def _get(self, key: str) -> yaml.Node | None:
        self._asked.add(key)
        return self._values.get(key)

    def _list(self, key: str, *, required: bool) -> list[yaml.Node]:
        node = self._get(key)
        if node is None:
            if required:
                raise self._missing(key)
            return []
        if not isinstance(node, yaml.SequenceNode):
            hint = f"in brackets, or each item in a line of its own that begins with '-': {key}: [...]"
            raise ConfigError(f"{self._where}: {key} must be a list", hint=hint, line=self._lines[key])
        return list(node.value)

    def _typed(self, key: str, kind: type, default: str | int | bool | None, what: str) -> Any:
        value = self.scalar(key, default)
        if type(value) is not kind:
            hints = {str: f'put it in quotes: "{value}"', int: "digits alone, without quotes or a sign of percent"}
            hint = hints.get(kind)
            raise ConfigError(f"{self._where}: {key} must be {what}", hint=hint, line=self._lines.get(key, self.line))
        return value


def _scalar(node: yaml.Node, where: str) -> Any:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return node.value
        if kind == "bool":
            return node.value.lower() in ("yes", "true", "on")
        if kind == "int" and re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", node.value):
            return int(node.value)
    hint = 'a whole number, true or false, or text; text that looks like a number stands in quotes: "1:1"'
    raise ConfigError(f"{where}: a plain value is expected", hint=hint, line=line)


def _string(node: yaml.Node, where: str) -> str:
    value = _scalar(node, where)
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: text is expected", hint=f'put it in quotes: "{value}"', line=node.start_mark.line + 1
        )
    return value
