"""In a guest, as its first program: does a piece of work for as long as it is told to, again and again.

    python3 driver.py boot            PID 1 of the benchmark's guest: serves the agent's port
    python3 driver.py serve           the same over standard input and output, on any machine

Requests and replies are JSON lines. ``{"work": NAME}`` makes the work's data and answers ``{"ready": NAME}``;
``{"seconds": S}`` works for so long, and answers ``operations`` and the ``seconds`` that they took.

Only the standard library: a Realm's base has nothing else.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import socket
import sqlite3
import statistics
import sys
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

MIB = 1 << 20
PAGE = 4096
PORT = "vambrace.agent"
CGROUPS = Path("/sys/fs/cgroup")
PORTS = Path("/sys/class/virtio-ports")
#: The NUMA node of the application's zone.
NODE = "1"
DISK = "/dev/vda"
#: The word of the kernel's command line with a card's address, and where ``peer.py`` listens at the host.
ADDRESS = "bench.address="
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
    return _disk_reads(128 << 10, _turns(_disk_size() // (128 << 10)))


def block_random(chance: random.Random) -> Step:
    """The same with 4 KiB, anywhere on the disk."""
    order = [chance.randrange(_disk_size() // PAGE) for _ in range(10_000)]
    turns = _turns(len(order))
    return _disk_reads(PAGE, (order[turn] for turn in turns))


def _disk_reads(size: int, places: Iterator[int]) -> Step:
    disk = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, size)

    def step() -> int:
        if os.preadv(disk, [buffer], next(places) * size) != size:
            raise RuntimeError("the disk gave less than was asked for")
        return 1

    return step


def _disk_size() -> int:
    disk = os.open(DISK, os.O_RDONLY)
    try:
        return os.lseek(disk, 0, os.SEEK_END)
    finally:
        os.close(disk)


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


def serve(read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
    """Answer requests until there are no more."""
    step: Step | None = None
    while line := read():
        request = json.loads(line)
        if "work" in request:
            step = WORKS[request["work"]](random.Random(1))
            reply: dict[str, object] = {"ready": request["work"]}
        elif step is None:
            reply = {"error": "no work was chosen"}
        else:
            operations, started = 0, time.monotonic()
            end = started + request["seconds"]
            while (now := time.monotonic()) < end:
                operations += step()
            reply = {"operations": operations, "seconds": now - started}
        write(json.dumps(reply).encode() + b"\n")


def boot() -> None:
    """What a Realm's init and agent do for an application, as far as it matters here: its memory is in its own zone."""
    libc = ctypes.CDLL(None, use_errno=True)
    mounts = (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp"), ("cgroup2", "/sys/fs/cgroup"))
    for kind, place in mounts:
        if libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None):
            raise OSError(ctypes.get_errno(), f"mount {place}")
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    for word in Path("/proc/cmdline").read_text().split():
        if word.startswith(ADDRESS):
            for command in (["addr", "add", word.removeprefix(ADDRESS), "dev", "eth0"], ["link", "set", "eth0", "up"]):
                if os.spawnv(os.P_WAIT, "/usr/bin/busybox", ["busybox", "ip", *command]):
                    raise OSError(f"ip {command}")
    group = CGROUPS / "work"
    group.mkdir()
    (group / "cpuset.mems").write_text(NODE)
    (group / "cgroup.procs").write_text("0")
    # A new process: what this one has lies in the system's zone.
    if os.fork():
        while True:
            os.wait()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", __file__, "monitor"])


def monitor() -> None:
    """Serve the monitor's port, and say first that this guest is ready."""
    device = -1
    while device < 0:
        time.sleep(0.05)
        for name in PORTS.glob("*/name"):
            if name.read_text().strip() == PORT:
                device = os.open(f"/dev/{name.parent.name}", os.O_RDWR)
    os.write(device, b'{"ready": "guest"}\n')
    waiting = b""

    def read() -> bytes:
        nonlocal waiting
        while b"\n" not in waiting:
            waiting += os.read(device, 4096)
        line, _, waiting = waiting.partition(b"\n")
        return line

    def write(data: bytes) -> None:
        os.write(device, data)

    serve(read, write)


def main() -> None:
    match sys.argv[1]:
        case "boot":
            boot()
        case "monitor":
            monitor()
        case "serve":
            serve(sys.stdin.buffer.readline, _print)


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
