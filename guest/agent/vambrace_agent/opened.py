"""A descriptor that is closed in the end."""

from __future__ import annotations

import os


class Opened:
    """Takes ``fd`` over; as a context manager it gives it, and closes it when it is left."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def opened(path: str, flags: int = os.O_RDONLY) -> Opened:
    """The file ``path``, which no program that is started inherits. Raises ``OSError``."""
    return Opened(os.open(path, flags | os.O_CLOEXEC))
