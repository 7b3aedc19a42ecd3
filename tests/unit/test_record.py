"""Records behave as frozen dataclasses do."""

from __future__ import annotations

import pytest

from vambrace.record import Record


class Point(Record):
    x: int
    y: int = 7

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is negative")


class Other(Record):
    x: int
    y: int = 7


def test_values_come_by_position_name_and_default() -> None:
    assert Point(1) == Point(x=1, y=7) == Point(1, 7)
    assert Point(1) != Point(2) and Point(1) != Other(1)
    assert hash(Point(1)) == hash(Point(1)) and len({Point(1), Point(1), Point(2)}) == 2
    assert repr(Point(1)) == "Point(x=1, y=7)"
    assert Point(1).as_dict() == {"x": 1, "y": 7}
    assert Point(1).replace(y=2) == Point(1, 2)
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)


def test_what_is_wrong_is_refused() -> None:
    for values, named in (((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})):
        with pytest.raises(TypeError, match="Point"):
            Point(*values, **named)
    for change in ({"x": -1}, {"x": -2, "y": 1}):
        with pytest.raises(ValueError, match="negative"):
            Point(1).replace(**change)
    point = Point(1)
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert point == Point(1)


class Shape(Record):
    OPTIONAL = frozenset({"points", "title"})

    sides: tuple[int, ...]
    points: tuple[Point, ...] = ()
    title: str = ""


def test_as_json_has_them() -> None:
    assert Shape.FIELDS == ("sides", "points", "title")
    assert Shape(()).as_object() == {"sides": []}
    assert Shape((3,), (Point(1),), "a").as_object() == {"sides": [3], "points": [{"x": 1, "y": 7}], "title": "a"}
