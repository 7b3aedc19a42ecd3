"""Marks memory as testbed/census.py counts it, and goes on using it at random: 10,000 pages of its own, and bytes that
wait in a socket and so lie in the kernel's memory, the system's zone. It tells both markers in its log."""

import ctypes
import mmap
import os
import random
import socket
import struct

PAGE = 4096
PAGES = 10_000
RECORD = struct.Struct("<16sQQ")
MASK = (1 << 64) - 1

own, kernels = os.urandom(16), os.urandom(16)

# Copied within the pages themselves: whatever else the marker went through would be found as well.
memory = mmap.mmap(-1, PAGES * PAGE)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range(PAGES):
    RECORD.pack_into(memory, page * PAGE, own, page, page ^ MASK)
    place, done = start + page * PAGE, RECORD.size
    while done < PAGE:
        ctypes.memmove(place + done, place, done)
        done *= 2

waiting, never_read = socket.socketpair()
waiting.setblocking(False)
try:
    while True:
        waiting.send(kernels * 256)
except BlockingIOError:
    pass

print(f"own {own.hex()} kernel {kernels.hex()}", flush=True)
while True:
    place = random.randrange(PAGES * PAGE)
    memory[place] = memory[place]
