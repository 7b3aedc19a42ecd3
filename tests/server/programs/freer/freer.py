"""Fills memory, holds it for a while, gives most of it back to the kernel, and says whether what it kept is whole."""

import hashlib
import mmap
import os
import time

MIB = 1 << 20
SIZE = 24 * MIB

kept = bytearray(os.urandom(4 * MIB))
digest = hashlib.sha256(kept).digest()
filled = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, SIZE, MIB):
    filled[start : start + MIB] = os.urandom(MIB)
print("filled", flush=True)
time.sleep(30)
filled.close()
print("freed", flush=True)
while True:
    time.sleep(5)
    print("whole" if hashlib.sha256(kept).digest() == digest else "harmed", flush=True)
