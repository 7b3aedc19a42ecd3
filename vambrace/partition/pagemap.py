"""A process's page map: which frame each of its pages has (Linux, Documentation/admin-guide/mm/pagemap.rst).

All of this needs CAP_SYS_ADMIN: others see zeros for frame numbers.
"""

from __future__ import annotations

import mmap
import os
import sys
from array import array

PAGE = mmap.PAGESIZE
# The top byte of an entry.
PRESENT, SWAPPED, FILE, GUARD, ONCE = 0x80, 0x40, 0x20, 0x04, 0x01
RIGHT = "the daemon needs CAP_SYS_ADMIN to read them"

_FRAME = (1 << 55) - 1


class PageMap:
    """Of process ``pid``; a context manager. Raises ``OSError``, also where there is no such process."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> PageMap:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, page: int, count: int) -> Entries:
        """Of ``count`` pages from number ``page`` on; fewer at the end of what can be mapped, none beyond it. Raises
        ``OSError`` (the process has ended), ``OverflowError``."""
        return Entries(os.pread(self._descriptor, 8 * count, 8 * page))


class Entries:
    """Entries of pages that follow each other. What is done to all of them is done in C: there are many."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # Little-endian in memory, whatever the machine: the top byte is then the eighth.
        self.tops = data[7::8] if sys.byteorder == "little" else data[0::8]

    def __len__(self) -> int:
        return len(self.tops)

    def nothing(self) -> bool:
        """Whether not one of the pages was ever touched."""
        return self._data.count(0) == len(self._data)

    def frames(self) -> array[int]:
        """The number in each entry: a frame's, where the page is present."""
        size = len(self._data)
        mask = int.from_bytes(_FRAME.to_bytes(8, sys.byteorder) * len(self), sys.byteorder)
        return array("Q", (int.from_bytes(self._data, sys.byteorder) & mask).to_bytes(size, sys.byteorder))
