"""A disk (virtio 1.2, section 5.2): file to guest memory and back without a copy in this process."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence

from vambrace.errors import ConfigError
from vambrace.virtio.device import VERSION_1, Device
from vambrace.virtio.memory import GuestFault
from vambrace.virtio.queue import MAX_SIZE, Chain, Queue

SECTOR = 512
#: Bytes of one request, and of all requests of a turn before the others' turn comes: Linux asks for 4 MiB at most
#: unless told otherwise. Whoever waits for the device, as the machine's end does, waits for one turn.
READ_LIMIT = 64 << 20
MAX_DISCARD = 1 << 22  # sectors in one piece: 2 GiB
MAX_DISCARD_PIECES = 16
_SEG_MAX, _READ_ONLY, _FLUSH, _DISCARD = 1 << 2, 1 << 5, 1 << 9, 1 << 13
_IN, _OUT, _FLUSH_OUT, _GET_ID, _DROP = 0, 1, 4, 8, 11
_OK, _IO_ERROR, _UNSUPPORTED = 0, 1, 2
_HEADER = struct.Struct("<IIQ")
_PIECE = struct.Struct("<QII")  # sector, sectors, flags
# FS_IOC_UNRESVSP64 with struct space_resv (linux/falloc.h): a hole in a file, for who has no fallocate(2).
_PUNCH = 0x4030582B
REQUESTS = (_PUNCH,)  # all that a file is asked (vambrace/jail/kinds.py)
_SPACE = struct.Struct("=hhxxxxqqiI16x")


class Block(Device):
    """``file`` is open, closed with this, and must hold a whole number of sectors; ``name`` is the serial number that
    the guest sees.

    ``writable``: the guest may write, have what it wrote on the disk (flush), and give space back (discard); the file
    is open for that. Else every write is an error. Raises ``ConfigError``: an odd size.

    What a flush confirms is on the file's disk. A driver that does not know of flushes gets that with each write
    (5.2.6.2). After a failed one nothing is confirmed any more: the kernel forgets which pages it could not write.
    """

    kind = 2
    queues = 1

    def __init__(self, file: int, name: str, *, writable: bool = False) -> None:
        self._fd = file
        self.size = os.fstat(self._fd).st_size
        if self.size == 0 or self.size % SECTOR:
            os.close(self._fd)
            raise ConfigError(f"disk {name}: {self.size} bytes are not a whole number of sectors")
        self._name = name.encode()[:20]
        self._writable = writable
        self._through = False  # to the disk with each write
        self._lost = False
        self.features = VERSION_1 | _SEG_MAX | (_FLUSH | _DISCARD if writable else _READ_ONLY)
        # capacity, size_max (not offered), seg_max: a header, the segments, the status
        self.config = struct.pack("<QII", self.size // SECTOR, 0, MAX_SIZE - 2)
        if writable:
            # Geometry, block size and topology are not offered; the limits of a discard, and its alignment.
            limits = struct.pack("<III", MAX_DISCARD, MAX_DISCARD_PIECES, 4096 // SECTOR)
            self.config = self.config.ljust(36, b"\0") + limits

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        self._through = self._writable and not features & _FLUSH

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
            done += written + sum(len(part) for part in chain.readable)
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
        written = 0
        if kind == _IN:
            status, written = self._transfer(os.preadv, sector, buffers)
        elif kind == _GET_ID:
            status, written = self._identify(buffers)
        elif not self._writable:
            status = _IO_ERROR if kind == _OUT else _UNSUPPORTED
        elif kind == _OUT:
            status, _ = self._transfer(os.pwritev, sector, _behind_header(chain))
            if self._through and status == _OK:
                status = self._flush()
        elif kind == _FLUSH_OUT:
            status = self._flush()
        elif kind == _DROP:
            status = self._discard(chain)
            if self._through and status == _OK:
                status = self._flush()
        else:
            status = _UNSUPPORTED
        chain.writable[-1][0] = status
        return written + 1

    def _transfer(
        self, move: Callable[[int, list[memoryview], int], int], sector: int, buffers: list[memoryview]
    ) -> tuple[int, int]:
        """Read or write all ``buffers`` from ``sector`` on; status and bytes done."""
        length = sum(len(part) for part in buffers)
        offset = sector * SECTOR
        if length % SECTOR or offset + length > self.size or length > READ_LIMIT:
            return _IO_ERROR, 0
        done = 0
        while buffers:
            try:
                count = move(self._fd, buffers, offset + done)
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

    def _flush(self) -> int:
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._lost = True
        return _IO_ERROR if self._lost else _OK

    def _discard(self, chain: Chain) -> int:
        """Give the space of whole pieces back; what is read there afterwards are zeros."""
        most = MAX_DISCARD_PIECES * _PIECE.size
        data = chain.prefix(_HEADER.size + most + 1)[_HEADER.size :]
        if len(data) > most or len(data) % _PIECE.size:
            return _UNSUPPORTED
        pieces = list(_PIECE.iter_unpack(data))
        for sector, count, flags in pieces:
            if flags:
                return _UNSUPPORTED
            if count > MAX_DISCARD or (sector + count) * SECTOR > self.size:
                return _IO_ERROR
        for sector, count, _ in pieces:
            try:
                fcntl.ioctl(self._fd, _PUNCH, _SPACE.pack(0, os.SEEK_SET, sector * SECTOR, count * SECTOR, 0, 0))
            except OSError:
                return _IO_ERROR
        return _OK

    def _identify(self, buffers: list[memoryview]) -> tuple[int, int]:
        if len(buffers) != 1 or len(buffers[0]) != 20:
            return _UNSUPPORTED, 0
        buffers[0][:] = self._name.ljust(20, b"\0")
        return _OK, 20


def _behind_header(chain: Chain) -> list[memoryview]:
    """What a request has to write: everything readable behind its header, however it is cut."""
    skip, buffers = _HEADER.size, []
    for part in chain.readable:
        if len(part) > skip:
            buffers.append(part[skip:])
        skip = max(0, skip - len(part))
    return buffers
