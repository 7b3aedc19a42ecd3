"""What a host says, before it is shown to anybody."""

from __future__ import annotations

from typing import Any


def plain(text: object) -> str:
    """Text of the host's as one printable line: it must not speak to our terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:1000])


def text_of(value: Any) -> str:
    """What an answer has as text, plain. Raises ``TypeError``: it is something else."""
    if not isinstance(value, str):
        raise TypeError
    return plain(value)
