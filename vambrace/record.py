"""Immutable records: what frozen dataclasses are to their users, without what these cost to import.

A Realm waits for its VMM process to start, and ``dataclasses`` makes that slow: it brings a Python parser along, and
compiles the methods of each class anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """A subclass's annotated names are its fields, in order; what is assigned to one is its default.

    ``__post_init__`` may check the values. Equal are records of one class with equal values.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()
    #: Those that ``as_object`` leaves out where they are empty.
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        cls.FIELDS = cls.__match_args__ = tuple(cls.__annotations__)  # type: ignore[misc, attr-defined]

    def __init__(self, *values: Any, **named: Any) -> None:
        cls = type(self)
        if len(values) > len(cls.FIELDS):
            raise TypeError(f"{cls.__name__}: {len(values)} values for {len(cls.FIELDS)} fields")
        given = dict(zip(cls.FIELDS, values, strict=False))
        if twice := given.keys() & named.keys():
            raise TypeError(f"{cls.__name__}: {min(twice)} is given twice")
        given |= named
        own = self.__dict__
        for name in cls.FIELDS:
            try:
                own[name] = given.pop(name) if name in given else getattr(cls, name)
            except AttributeError:
                raise TypeError(f"{cls.__name__}: {name} is missing") from None
        if given:
            raise TypeError(f"{cls.__name__} has no field {min(given)}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Raises what is wrong with the values."""

    def as_dict(self) -> dict[str, Any]:
        """The values by name, in order."""
        return dict(self.__dict__)

    def as_object(self) -> dict[str, Any]:
        """The values by name, as JSON has them."""
        return {
            name: json_value(value) for name, value in self.__dict__.items() if value or name not in self.OPTIONAL
        }

    def replace(self, **changes: Any) -> Any:
        """A copy with other values for some fields."""
        return type(self)(**self.__dict__ | changes)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}: {name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def json_value(value: Any) -> Any:
    """A copy of ``value``, with an object for each record in it and a list for each tuple."""
    if isinstance(value, Record):
        return value.as_object()
    if isinstance(value, tuple):
        return [json_value(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
