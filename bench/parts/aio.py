"""Several transfers of a disk under way at a time (io_submit(2), the kernel's own asynchronous I/O). Only the standard
library: this file is part of a benchmark's image."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence

READ, WRITE = 0, 1

#: io_setup, io_destroy, io_submit and io_getevents, by the machine.
_CALLS = {"aarch64": (0, 1, 2, 4), "x86_64": (206, 207, 209, 208)}
_REQUEST = struct.Struct("<QIIHhIQQqQII")  # struct iocb (linux/aio_abi.h)
_EVENT = struct.Struct("<QQqq")


class Queue:
    """Up to ``depth`` transfers of ``size`` bytes of ``file``, each with its part of ``memory``. Raises ``OSError``."""

    def __init__(self, file: int, size: int, depth: int) -> None:
        self._setup, self._destroy, self._submit, self._events = _CALLS[os.uname().machine]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file, self._size = file, size
        self.memory = mmap.mmap(-1, size * depth)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._requests = ctypes.create_string_buffer(_REQUEST.size * depth)
        first = ctypes.addressof(self._requests)
        self._pointers = (ctypes.c_void_p * depth)(*(first + _REQUEST.size * n for n in range(depth)))
        self._results = ctypes.create_string_buffer(_EVENT.size * depth)
        self._context = ctypes.c_ulong()
        self._call(self._setup, ctypes.c_ulong(depth), ctypes.byref(self._context))

    def close(self) -> None:
        self._call(self._destroy, self._context)

    def transfer(self, kind: int, offsets: Sequence[int]) -> None:
        """Begin ``kind`` at all of these places at once, and return when all have ended. Raises ``OSError``: one did
        less than it was to."""
        for number, offset in enumerate(offsets):
            buffer = self._address + self._size * number
            request = (number, 0, 0, kind, 0, self._file, buffer, self._size, offset, 0, 0, 0)
            _REQUEST.pack_into(self._requests, _REQUEST.size * number, *request)
        count = ctypes.c_long(len(offsets))
        if self._call(self._submit, self._context, count, self._pointers) != len(offsets):
            raise OSError("the kernel takes fewer transfers")
        if self._call(self._events, self._context, count, count, self._results, None) != len(offsets):
            raise OSError("fewer transfers have ended")
        for number in range(len(offsets)):
            done = _EVENT.unpack_from(self._results, _EVENT.size * number)[2]
            if done != self._size:
                raise OSError(-done if done < 0 else 0, "the disk did less than was asked for")

    def _call(self, number: int, *words: object) -> int:
        answer: int = self._libc.syscall(ctypes.c_long(number), *words)
        if answer < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return answer
