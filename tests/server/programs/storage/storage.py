"""Uses the NVMe disk that it was given: writes and reads back."""

import json
import mmap
import os
import time

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


secret = os.urandom(PIECE)
transfer(0, PIECE, secret)
print(json.dumps({"same": transfer(0, PIECE) == secret}), flush=True)
time.sleep(3600)
