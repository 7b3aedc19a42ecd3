"""What a guest's driver does: pieces of work, each by its name. Only the standard library: a Realm's base has nothing
else."""

from __future__ import annotations

import mmap
import os
import random
import socket
import sqlite3
import statistics
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

from bench.parts import aio

MIB = 1 << 20
PAGE = 4096
LARGE = 128 << 10
#: Transfers of a disk at a time.
DEPTH = 16
DISK, NVME = "/dev/vda", "/dev/nvme0n1"
#: Where ``peer.py`` listens at the host.
PEER = ("10.9.0.1", 9000)

#: Does a few operations and says how many.
Step = Callable[[], int]


def scan(chance: random.Random) -> Step:
    """The checksum of each page of 32 MiB, one after the other. An operation is a page."""
    memory = _filled(chance, 32 * MIB)
    pages = _turns(len(memory) // PAGE)

    def step() -> int:
        for _ in range(16):
            start = next(pages) * PAGE
            zlib.adler32(memory[start : start + PAGE])
        return 16

    return step


def zipf(chance: random.Random) -> Step:
    """A byte of 32 MiB, its page by Zipf(0.99): read, and one in four written. An operation is a touch."""
    memory = _filled(chance, 32 * MIB)
    order = popular(chance, len(memory) // PAGE, 200_000)
    turns = _turns(len(order))

    def step() -> int:
        for _ in range(16):
            turn = next(turns)
            place = order[turn] * PAGE + turn % PAGE
            if turn & 3:
                memory[place]
            else:
                memory[place] = turn & 255
        return 16

    return step


def sqlite(chance: random.Random) -> Step:
    """A database of 30 MB: rows by their key, by Zipf(0.99), one in ten changed. An operation is a query."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE TABLE patient (number INTEGER PRIMARY KEY, ward INTEGER, age INTEGER, notes BLOB)")
    count = 30_000
    rows = ((n, chance.randrange(200), chance.randrange(100), chance.randbytes(1000)) for n in range(count))
    database.executemany("INSERT INTO patient VALUES (?, ?, ?, ?)", rows)
    order = popular(chance, count, 100_000)
    turns = _turns(len(order))

    def step() -> int:
        for _ in range(4):
            turn = next(turns)
            if turn % 10:
                database.execute("SELECT notes FROM patient WHERE number = ?", (order[turn],)).fetchone()
            else:
                database.execute("UPDATE patient SET age = age + 1 WHERE number = ?", (order[turn],))
        return 4

    return step


def store(chance: random.Random) -> Step:
    """A key-value store of 20 MB in a process of its own, asked over a socket as Redis is: keys by Zipf(0.99), four
    GET to a SET. An operation is a request."""
    count = 20_000
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _serve_store(theirs, {b"user%d" % n: chance.randbytes(chance.randrange(500, 1500)) for n in range(count)})
        os._exit(0)
    theirs.close()
    answers = ours.makefile("rb")
    order = popular(chance, count, 100_000)
    turns = _turns(len(order))
    values = [chance.randbytes(1000) for _ in range(16)]

    def step() -> int:
        for _ in range(4):
            turn = next(turns)
            key = b"user%d" % order[turn]
            value = values[turn % 16] if turn % 5 == 0 else b""
            words = (b"SET", key, value) if value else (b"GET", key)
            ours.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            answer = answers.readline()
            if answer[:1] == b"$":
                answers.read(int(answer[1:]) + 2)
            elif answer != b"+OK\r\n":
                raise RuntimeError(f"the store answered {answer!r}")
        return 4

    step()  # its data is there when it has answered
    return step


def _serve_store(connection: socket.socket, values: dict[bytes, bytes]) -> None:
    """GET and SET of the Redis serialization protocol."""
    requests = connection.makefile("rb")
    while line := requests.readline():
        words = []
        for _ in range(int(line[1:])):
            length = int(requests.readline()[1:])
            words.append(requests.read(length + 2)[:-2])
        if words[0] == b"SET":
            values[words[1]] = words[2]
            connection.sendall(b"+OK\r\n")
        else:
            value = values[words[1]]
            connection.sendall(b"$%d\r\n%s\r\n" % (len(value), value))


def analysis(chance: random.Random) -> Step:
    """Measurements of 100 wards, 30 MB: mean, median and correlation of one after the other. An operation is a ward."""
    wards, rows_of_each = 100, 1200
    # As objects, like what is read from a CSV file: their references and numbers lie all over the heap.
    rows = [(n % wards, chance.gauss(37, 1), chance.gauss(80, 12), str(n)) for n in range(wards * rows_of_each)]
    chance.shuffle(rows)
    by_ward: list[list[tuple[int, float, float, str]]] = [[] for _ in range(wards)]
    for row in rows:
        by_ward[row[0]].append(row)
    turns = _turns(wards)
    results: deque[tuple[float, float, float]] = deque(maxlen=wards)

    def step() -> int:
        chosen = by_ward[next(turns)]
        heat, pulse = [row[1] for row in chosen], [row[2] for row in chosen]
        results.append((statistics.fmean(heat), statistics.median(heat), statistics.correlation(heat, pulse)))
        return 1

    return step


def block_sequential(chance: random.Random) -> Step:
    """The disk, past the guest's page cache, in reads of 128 KiB, one after the other. An operation is a read."""
    return _transfers(DISK, os.preadv, LARGE, _turns(_disk_size(DISK) // LARGE))


def block_random(chance: random.Random) -> Step:
    """The same with 4 KiB, anywhere on the disk."""
    return _transfers(DISK, os.preadv, PAGE, _anywhere(chance, DISK))


def nvme_read(chance: random.Random) -> Step:
    """The NVMe disk, past the guest's page cache, in reads of 128 KiB, one after the other. An operation is a read."""
    return _transfers(NVME, os.preadv, LARGE, _turns(_disk_size(NVME) // LARGE))


def nvme_write(chance: random.Random) -> Step:
    """The same with writes."""
    return _transfers(NVME, os.pwritev, LARGE, _turns(_disk_size(NVME) // LARGE))


def nvme_latency(chance: random.Random) -> Step:
    """Reads of 4 KiB anywhere on it, one at a time. An operation is a read."""
    return _transfers(NVME, os.preadv, PAGE, _anywhere(chance, NVME))


def nvme_random_read(chance: random.Random) -> Step:
    """The same, 16 begun at once."""
    return _transfers_at_once(NVME, aio.READ, _anywhere(chance, NVME))


def nvme_random_write(chance: random.Random) -> Step:
    """The same with writes."""
    return _transfers_at_once(NVME, aio.WRITE, _anywhere(chance, NVME))


def _transfers(disk: str, move: Callable[..., int], size: int, places: Iterator[int]) -> Step:
    file = os.open(disk, (os.O_RDONLY if move is os.preadv else os.O_RDWR) | os.O_DIRECT)
    buffer = mmap.mmap(-1, size)

    def step() -> int:
        if move(file, [buffer], next(places) * size) != size:
            raise RuntimeError("the disk did less than was asked for")
        return 1

    return step


def _transfers_at_once(disk: str, kind: int, places: Iterator[int]) -> Step:
    """An operation is a transfer of 4 KiB; a step begins ``DEPTH`` of them and waits for all."""
    queue = aio.Queue(os.open(disk, os.O_RDWR | os.O_DIRECT), PAGE, DEPTH)

    def step() -> int:
        queue.transfer(kind, [next(places) * PAGE for _ in range(DEPTH)])
        return DEPTH

    return step


def _anywhere(chance: random.Random, disk: str) -> Iterator[int]:
    pages = _disk_size(disk) // PAGE
    order = [chance.randrange(pages) for _ in range(10_000)]
    return (order[turn] for turn in _turns(len(order)))


def _disk_size(disk: str) -> int:
    for _ in range(200):  # a device may come some time after its guest
        if Path(disk).exists():
            break
        time.sleep(0.1)
    file = os.open(disk, os.O_RDONLY)
    try:
        return os.lseek(file, 0, os.SEEK_END)
    finally:
        os.close(file)


def card_send(chance: random.Random) -> Step:
    """TCP to the host, through the guest's network card. An operation is a MiB."""
    peer, data = _peer(b"s"), chance.randbytes(MIB)

    def step() -> int:
        peer.sendall(data)
        return 1

    return step


def card_receive(chance: random.Random) -> Step:
    """TCP from the host. An operation is a MiB."""
    peer, buffer = _peer(b"d"), bytearray(MIB)

    def step() -> int:
        if peer.recv_into(buffer, MIB, socket.MSG_WAITALL) != MIB:
            raise RuntimeError("the host sent less")
        return 1

    return step


def card_ask(chance: random.Random) -> Step:
    """A byte to the host and back. An operation is a round trip."""
    peer = _peer(b"e")

    def step() -> int:
        peer.sendall(b"?")
        if not peer.recv(1):
            raise RuntimeError("the host does not answer")
        return 1

    return step


def _peer(kind: bytes) -> socket.socket:
    peer = socket.create_connection(PEER, timeout=60)
    peer.settimeout(None)  # with one, nothing waits for all
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # see peer.py
    peer.sendall(kind)
    return peer


WORKS: dict[str, Callable[[random.Random], Step]] = {
    "scan": scan,
    "zipf": zipf,
    "sqlite": sqlite,
    "store": store,
    "analysis": analysis,
    "block-sequential": block_sequential,
    "block-random": block_random,
    "nvme-read": nvme_read,
    "nvme-write": nvme_write,
    "nvme-latency": nvme_latency,
    "nvme-random-read": nvme_random_read,
    "nvme-random-write": nvme_random_write,
    "card-send": card_send,
    "card-receive": card_receive,
    "card-ask": card_ask,
}


def popular(chance: random.Random, things: int, count: int) -> array[int]:
    """``count`` numbers below ``things`` by Zipf(0.99), the popular ones anywhere."""
    ranked = list(range(things))
    chance.shuffle(ranked)
    weights = list(accumulate(1 / rank**0.99 for rank in range(1, things + 1)))
    return array("I", chance.choices(ranked, cum_weights=weights, k=count))


def _filled(chance: random.Random, size: int) -> mmap.mmap:
    """Memory with pages of its own, whose contents cannot be compressed."""
    memory = mmap.mmap(-1, size)
    for start in range(0, size, MIB):
        memory[start : start + MIB] = chance.randbytes(MIB)
    return memory


def _turns(count: int) -> Iterator[int]:
    """0 to below ``count``, again and again."""
    while True:
        yield from range(count)
