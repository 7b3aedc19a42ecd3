"""Counts as a VMM, an agent or a Realm says them: whether a value can be one."""

from __future__ import annotations

from typing import TypeGuard

#: The C core counts in 64 bits.
COUNT_LIMIT = 1 << 64


def is_count(value: object, at_most: int = COUNT_LIMIT - 1, at_least: int = 0) -> TypeGuard[int]:
    """Whether it is a whole number from ``at_least`` to ``at_most``. A bool, which is an int too, is none."""
    return type(value) is int and at_least <= value <= at_most
