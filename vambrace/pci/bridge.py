"""A PCI host bridge with one bus (PCI Express Base 4.0, section 7.2.2: enhanced configuration access)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from vambrace.errors import KvmError
from vambrace.pci.function import Function

#: Bytes of configuration addresses of one bus: 4 KiB for each of 256 functions.
BUS: Final = 1 << 20
_FUNCTION: Final = 4096


class HostBridge:
    """The functions of bus 0. ``read`` and ``write`` come from any vCPU's thread."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = {function.number: function for function in functions}
        self._lock = threading.RLock()

    def read_config(self, offset: int, length: int) -> bytes:
        """``offset`` from the beginning of the bus's configuration addresses; where nothing is, ones."""
        function = self._functions.get(offset // _FUNCTION)
        if function is None or not _whole(offset, length):
            return b"\xff" * length
        with self._lock:
            return function.config.read(offset % _FUNCTION, length)

    def write_config(self, offset: int, data: bytes) -> None:
        function = self._functions.get(offset // _FUNCTION)
        if function is not None and _whole(offset, len(data)):
            with self._lock:
                function.config.write(offset % _FUNCTION, data)

    def read(self, address: int, length: int) -> bytes:
        """A guest-physical address where regions lie; where none does, ones."""
        with self._lock:
            for function in self._functions.values():
                if (place := function.find(address)) is not None:
                    return function.read(place, address - place.address, length)
        return b"\xff" * length

    def write(self, address: int, data: bytes) -> None:
        with self._lock:
            for function in self._functions.values():
                if (place := function.find(address)) is not None:
                    function.write(place, address - place.address, data)
                    return

    def quiet(self) -> None:
        """As ``Function.quiet``, for all, whatever becomes of one; from then on nothing is there. Raises ``KvmError``
        if any did not."""
        failed: KvmError | None = None
        with self._lock:
            # A vCPU that did not stop in time may come yet.
            functions, self._functions = self._functions, {}
            for function in functions.values():
                try:
                    function.quiet()
                except KvmError as error:
                    failed = error
        if failed is not None:
            raise failed


def _whole(offset: int, length: int) -> bool:
    """An access as the specification allows it: 1, 2 or 4 bytes (8 in two), aligned."""
    return length in (1, 2, 4, 8) and offset % length == 0
