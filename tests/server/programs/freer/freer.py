"""Fills memory, holds it until somebody connects, gives most of it back to the kernel, and says whether what it kept is
whole.

    python3 freer.py PORT
"""

import hashlib
import mmap
import os
import socket
import sys
import time

MIB = 1 << 20
SIZE = 24 * MIB

door = socket.create_server(("127.0.0.1", int(sys.argv[1])))
kept = bytearray(os.urandom(4 * MIB))
digest = hashlib.sha256(kept).digest()
filled = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, SIZE, MIB):
    filled[start : start + MIB] = os.urandom(MIB)
print("filled", flush=True)
door.accept()
filled.close()
print("freed", flush=True)
while True:
    time.sleep(1)
    print("whole" if hashlib.sha256(kept).digest() == digest else "harmed", flush=True)
