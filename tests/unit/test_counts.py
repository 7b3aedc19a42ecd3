"""What can be a count, and what somebody else may say instead of one."""

from __future__ import annotations

import pytest

from vambrace.counts import COUNT_LIMIT, is_count


@pytest.mark.parametrize("value", [0, 1, COUNT_LIMIT - 1])
def test_a_count(value: int) -> None:
    assert is_count(value)


@pytest.mark.parametrize("value", [-1, COUNT_LIMIT, True, 1.0, "1", None, [1]])
def test_no_count(value: object) -> None:
    assert not is_count(value)


def test_within_bounds() -> None:
    assert [value for value in range(6) if is_count(value, at_most=4, at_least=2)] == [2, 3, 4]
