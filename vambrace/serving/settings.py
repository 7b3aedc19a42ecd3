"""A service's settings: one TOML file, unknown keys refused. What it may have, the fields of a dataclass say.

A field is read by its type: ``str``, ``int``, ``bool``, ``Path``, a tuple of such, or one of them or none; or by a
reader of its own (``setting``).
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from vambrace.errors import ConfigError

Settings = TypeVar("Settings")

#: Makes of a value of the file, and the folder that paths are relative to, what the field has. Raises ``ConfigError``.
Reader = Callable[[Any, Path], Any]

_READER, _INTERNAL = "reader", "internal"
_WORDS = {str: "a text", int: "a whole number", bool: "true or false"}


def setting(reader: Reader, **options: Any) -> Any:
    """A field with a reader of its own; ``options`` are those of ``dataclasses.field``."""
    return dataclasses.field(metadata={_READER: reader}, **options)


def internal(default: Any) -> Any:
    """A field that no file sets."""
    return dataclasses.field(default=default, metadata={_INTERNAL: True})


def load(kind: type[Settings], path: Path, *, hint: str, absent: str, relative: bool = True) -> Settings:
    """Read settings of this ``kind`` from the file at ``path``; paths in it are ``relative`` to its folder or absolute.

    Raises ``ConfigError``, with the hint ``absent`` where the file cannot be read, and ``hint`` where it is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=absent) from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise ConfigError(f"{path} is not TOML: {str(error)[:200]}", hint=hint) from error
    try:
        return parse(kind, table, path.parent if relative else None, hint=hint)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def parse(kind: type[Settings], table: Mapping[str, Any], folder: Path | None, *, hint: str) -> Settings:
    """Check one table of settings, whose paths are relative to ``folder``, or absolute without one.

    Raises ``ConfigError`` that names the key.
    """
    known = {field.name: field for field in _fields(kind) if _INTERNAL not in field.metadata}
    types = typing.get_type_hints(kind)
    try:
        for key in table:
            check(key in known, f"unknown key {key[:40]!a}")
        for name, field in known.items():
            needed = field.default is MISSING is field.default_factory
            check(name in table or not needed, f"{name} is missing")
        values = {name: _read(known[name], types[name], value, folder) for name, value in table.items()}
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(error.message, hint=error.hint or hint) from error


def check(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` with ``message`` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_range(settings: object, least: int, most: int, *names: str) -> None:
    """Raise ``ConfigError`` for a number of the ``settings`` that is not from ``least`` to ``most``."""
    for name in names:
        check(least <= getattr(settings, name) <= most, f"{name} must be {least} to {most}")


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return dataclasses.fields(kind)


def _read(field: Field[Any], kind: Any, value: Any, folder: Path | None) -> Any:
    reader = field.metadata.get(_READER)
    return reader(value, folder or Path("/")) if reader else _typed(kind, field.name, value, folder)


def _typed(kind: Any, name: str, value: Any, folder: Path | None) -> Any:
    if isinstance(kind, UnionType):  # what is there is not None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        check(isinstance(value, list), f"{name} must be a list")
        return tuple(_typed(typing.get_args(kind)[0], f"{name}[{n}]", item, folder) for n, item in enumerate(value))
    if kind is Path:
        check(isinstance(value, str), f"{name} must be a path")
        check(folder is not None or value.startswith("/"), f"{name} must be an absolute path")
        return folder / value if folder else Path(value)
    check(type(value) is kind, f"{name} must be {_WORDS[kind]}")
    return value
