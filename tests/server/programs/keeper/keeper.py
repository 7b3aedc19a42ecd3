"""Keeps records on a volume: says what it finds there, and confirms each new one when it is on the disk."""

import array
import fcntl
import os
import struct
import sys

RECORDS, FILE = "/data/records/records", "/data/records/file"
FIEMAP = 0xC020660B


def place(path):
    """Where on its disk a file begins, in bytes (linux/fiemap.h)."""
    with open(path, "rb") as file:
        request = array.array("B", struct.pack("=QQIIII", 0, 1 << 62, 1, 1, 1, 0) + bytes(56))
        fcntl.ioctl(file, FIEMAP, request)
        return struct.unpack_from("=QQ", request, 32)[1]


def write(path, data, mode="wb"):
    with open(path, mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def found(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode().strip().replace("\n", ",")
    except OSError as error:
        return error.strerror


# Made here: what an image has in it the host knows.
canary = f"canary-{os.urandom(16).hex()}"
print("canary:", canary, flush=True)
print("records:", found(RECORDS), flush=True)
print("file:", found(FILE)[: len(canary)], flush=True)
print("scratch:", sorted(set(os.listdir("/scratch")) - {"lost+found"}), flush=True)
write("/scratch/canary", canary.encode() * 1000)
if not os.path.exists(FILE):
    write(FILE, canary.encode() * 1000)
print("place:", place(FILE), flush=True)
number = int(found(RECORDS).rpartition(",")[2]) if os.path.exists(RECORDS) else 0
while True:
    number += 1
    write(RECORDS, b"%d\n" % number, "ab")
    print("kept:", number, flush=True)
    if "appending" not in sys.argv:
        break
print("done", flush=True)
