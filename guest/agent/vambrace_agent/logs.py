"""The last part of what an application wrote, in a file of fixed size."""

from __future__ import annotations

import os

SIZE = 1 << 20


class Log:
    """A ring of ``size`` bytes in a file. Offsets count from the first byte ever written."""

    def __init__(self, directory: str, size: int = SIZE) -> None:
        self.size = size
        self.end = 0
        # Unlinked at once: nobody else can open it, and it goes with the agent.
        path = os.path.join(directory, "log")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)

    @property
    def start(self) -> int:
        """Offset of the oldest byte that is still there."""
        return max(0, self.end - self.size)

    def append(self, data: bytes) -> None:
        skip = max(0, len(data) - self.size)
        self.end += skip
        data = data[skip:]
        place = self.end % self.size
        first = min(len(data), self.size - place)
        _write(self._fd, data[:first], place)
        _write(self._fd, data[first:], 0)
        self.end += len(data)

    def read(self, offset: int, limit: int) -> tuple[int, bytes]:
        """Up to ``limit`` bytes from ``offset`` on, or from the oldest that is left: (offset, bytes)."""
        offset = min(max(offset, self.start), self.end)
        place = offset % self.size
        count = min(limit, self.end - offset)
        first = min(count, self.size - place)
        return offset, os.pread(self._fd, first, place) + os.pread(self._fd, count - first, 0)


def _write(fd: int, data: bytes, place: int) -> None:
    while data:
        done = os.pwrite(fd, data, place)
        data = data[done:]
        place += done
