"""Uses the NVMe disk that it was given: writes and reads back, asks for more at once than devices may reach here, and
goes on."""

import json
import mmap
import os
import time

MIB = 1 << 20
PIECE = 64 << 10
DISK = "/dev/nvme0n1"


def transfer(offset: int, size: int, data: bytes = b"") -> bytes:
    """Write ``data``, or read so many bytes, past the page cache: the device reaches this program's own memory."""
    disk = os.open(DISK, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as memory:
            if data:
                memory[:] = data
                assert os.pwritev(disk, [memory], offset) == size
            else:
                assert os.preadv(disk, [memory], offset) == size
            return memory[:]
    finally:
        os.close(disk)


def try_too_much(expected: bytes) -> str:
    """What a transfer comes to that needs more of this zone than devices may reach: 128 KiB at a time.

    The guest's kernel has it tried all the same; the disk says that it could not or, as QEMU's does, nothing.
    """
    try:
        found = transfer(MIB, MIB)
    except OSError as error:
        return os.strerror(error.errno)
    return "it succeeded" if found == expected else "nothing arrived"


secret = os.urandom(PIECE)
transfer(0, PIECE, secret)
same = transfer(0, PIECE) == secret
pieces = [os.urandom(PIECE) for _ in range(MIB // PIECE)]
for number, piece in enumerate(pieces):
    transfer(MIB + number * PIECE, PIECE, piece)
refused = try_too_much(b"".join(pieces))
again = transfer(0, PIECE) == secret
print(json.dumps({"same": same, "refused": refused, "again": again}), flush=True)
time.sleep(3600)
