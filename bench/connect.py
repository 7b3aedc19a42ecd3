"""What the way of ``vambrace connect`` costs: TLS to the agent inside of TLS to the host, and a relay in each of them.

Rows (docs/performance.md): ``connect/WORK``, an ordinary client through a local port and the product's client, host and
agent, natively, against the same client with TLS straight to the same program. ``send`` and ``receive`` in MiB/s;
``ask`` (a byte there and back) and ``open`` (the same on a connection of its own) per second.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from statistics import median

from bench.parts.published import Ways, published
from bench.report import Report, rounds

ROUNDS = rounds(9)
SECONDS = 0.7
MIB = 1 << 20
UNITS = {"send": "MiB/s", "receive": "MiB/s", "ask": "1/s", "open": "1/s"}
TLS, OURS = "TLS to the program", "vambrace connect"


def run(report: Report) -> None:
    with published() as ways:
        dials: dict[str, Callable[[], socket.socket]] = {TLS: lambda: secured(ways), OURS: lambda: local(ways)}
        for dial in dials.values():
            turn("ask", dial)  # the first connection is verified, and everything imported
        for work, unit in UNITS.items():
            found: dict[str, list[float]] = {subject: [] for subject in dials}
            for _ in range(ROUNDS):
                for subject, dial in dials.items():
                    found[subject].append(turn(work, dial))
            ratios = [ours / theirs for ours, theirs in zip(found[OURS], found[TLS], strict=True)]
            report.add(f"connect/{work}", TLS, median(found[TLS]), unit)
            report.add_rounds(f"connect/{work}", OURS, found[OURS], unit, ratios, TLS, with_interval=True)


def local(ways: Ways) -> socket.socket:
    stream = socket.create_connection(ways.connect, 60)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def secured(ways: Ways) -> socket.socket:
    stream = socket.create_connection(ways.tls, 60)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ways.context.wrap_socket(stream, server_hostname=ways.tls[0])


def turn(work: str, dial: Callable[[], socket.socket]) -> float:
    """Operations per second."""
    if work == "open":
        return rate(lambda: once(dial))
    with dial() as stream:
        if work == "ask":
            stream.sendall(b"e")
            return rate(lambda: ask(stream))
        buffer = memoryview(bytearray(MIB))
        if work == "receive":
            stream.sendall(b"d")
            return rate(lambda: fill(stream, buffer))
        stream.sendall(b"s")
        return rate(lambda: stream.sendall(buffer))


def rate(step: Callable[[], None]) -> float:
    operations, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + SECONDS:
        step()
        operations += 1
    return operations / (now - started)


def once(dial: Callable[[], socket.socket]) -> None:
    with dial() as stream:
        stream.sendall(b"e")
        ask(stream)


def ask(stream: socket.socket) -> None:
    stream.sendall(b"?")
    if not stream.recv(1):
        raise ConnectionError("the program is gone")


def fill(stream: socket.socket, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        length = stream.recv_into(buffer[done:])
        if not length:
            raise ConnectionError("the program is gone")
        done += length
