"""How long steps tell how far they are."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """``done`` of ``total`` bytes or items; ``total`` is 0 where it is not known."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None: ...


def silent(step: str, done: int = 0, total: int = 0) -> None:
    """Tell nobody."""
