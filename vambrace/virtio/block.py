"""A read-only disk (virtio 1.2, section 5.2): file to guest memory without a copy in this process."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from vambrace.errors import ConfigError
from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.memory import GuestFault
from vambrace.virtio.queue import MAX_SIZE, Chain, Queue

SECTOR = 512
#: Bytes of one request, and of all requests of a turn before the others' turn comes: Linux asks for 4 MiB at most
#: unless told otherwise. Whoever waits for the device, as the machine's end does, waits for one turn.
READ_LIMIT = 64 << 20
_SEG_MAX, _READ_ONLY = 1 << 2, 1 << 5
_IN, _OUT, _GET_ID = 0, 1, 8
_OK, _IO_ERROR, _UNSUPPORTED = 0, 1, 2
_HEADER = struct.Struct("<IIQ")


class Block(Device):
    """``file`` is open for reading, closed with this, and must hold a whole number of sectors; ``name`` is the serial
    number that the guest sees. Raises ``ConfigError``: an odd size."""

    kind = 2
    queues = 1
    features = VERSION_1 | _SEG_MAX | _READ_ONLY

    def __init__(self, file: int, name: str) -> None:
        self._fd = file
        self.size = os.fstat(self._fd).st_size
        if self.size == 0 or self.size % SECTOR:
            os.close(self._fd)
            raise ConfigError(f"disk {name}: {self.size} bytes are not a whole number of sectors")
        self._name = name.encode()[:20]
        # capacity, size_max (not offered), seg_max: a header, the segments, the status
        self.config = struct.pack("<QII", self.size // SECTOR, 0, MAX_SIZE - 2)

    def close(self) -> None:
        os.close(self._fd)

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        queue = queues[0]
        if queue is None:
            return
        done = 0
        for chain in queue.requests():
            written = self._serve(chain)
            queue.push(chain, written)
            done += written
            if done > READ_LIMIT:
                queue.unfinished = True
                return

    def _serve(self, chain: Chain) -> int:
        """Serve one request; the number of bytes written to it, status included."""
        if not chain.writable or len(chain.writable[-1]) != 1:
            raise GuestFault("disk request without a byte for its status")
        header = chain.prefix(_HEADER.size)
        if len(header) != _HEADER.size:
            raise GuestFault("disk request without a header")
        kind, _, sector = _HEADER.unpack(header)
        buffers = [part for part in chain.writable[:-1] if len(part)]
        if kind == _IN:
            status, written = self._read(sector, buffers)
        elif kind == _GET_ID:
            status, written = self._identify(buffers)
        else:
            status, written = (_IO_ERROR if kind == _OUT else _UNSUPPORTED), 0
        chain.writable[-1][0] = status
        return written + 1

    def _read(self, sector: int, buffers: list[memoryview]) -> tuple[int, int]:
        length = sum(len(part) for part in buffers)
        offset = sector * SECTOR
        if length % SECTOR or offset + length > self.size or length > READ_LIMIT:
            return _IO_ERROR, 0
        done = 0
        while buffers:
            try:
                count = os.preadv(self._fd, buffers, offset + done)
            except OSError:
                return _IO_ERROR, done
            if count == 0:
                return _IO_ERROR, done  # the file was cut short
            done += count
            while buffers and count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            if buffers:
                buffers[0] = buffers[0][count:]
        return _OK, done

    def _identify(self, buffers: list[memoryview]) -> tuple[int, int]:
        if len(buffers) != 1 or len(buffers[0]) != 20:
            return _UNSUPPORTED, 0
        buffers[0][:] = self._name.ljust(20, b"\0")
        return _OK, 20
