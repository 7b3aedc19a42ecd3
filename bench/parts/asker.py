"""In a Realm: TCP to ``peer.py`` in another one, through the endpoint and through the network card, in turn.

    python3 asker.py ADDRESS PORT ROUNDS SECONDS

Prints one JSON object: by work and by way, operations per second, one of each round. An operation is a MiB, or a byte
there and back. Only the standard library.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable

MIB = 1 << 20


def step_of(kind: bytes, stream: socket.socket) -> Callable[[], None]:
    """One operation."""
    buffer = memoryview(bytearray(MIB))

    def send() -> None:
        stream.sendall(buffer)

    def receive() -> None:
        if stream.recv_into(buffer, MIB, socket.MSG_WAITALL) != MIB:
            raise ConnectionError("the other Realm is gone")

    def ask() -> None:
        stream.sendall(b"?")
        if not stream.recv(1):
            raise ConnectionError("the other Realm is gone")

    stream.settimeout(None)  # with one, nothing waits for all
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # see peer.py
    stream.sendall(kind)
    return {b"s": send, b"d": receive, b"e": ask}[kind]


def rate(step: Callable[[], None], seconds: float) -> float:
    operations, started = 0, time.monotonic()
    while (now := time.monotonic()) < started + seconds:
        step()
        operations += 1
    return operations / (now - started)


def connect(address: tuple[str, int]) -> socket.socket:
    """The other Realm may not be there yet."""
    for _ in range(60):
        try:
            stream = socket.create_connection(address, timeout=60)
            stream.sendall(b"e?")
            if stream.recv(1):
                stream.close()
                return socket.create_connection(address, timeout=60)
        except OSError:
            pass
        time.sleep(0.5)
    raise ConnectionError(f"{address} does not answer")


def main() -> None:
    host, port = os.environ["ENDPOINT_BENCH"].split(":")
    ways = {"messages": (host, int(port)), "cards": (sys.argv[1], int(sys.argv[2]))}
    rounds, seconds = int(sys.argv[3]), float(sys.argv[4])
    result: dict[str, dict[str, list[float]]] = {}
    for work, kind in (("send", b"s"), ("receive", b"d"), ("ask", b"e")):
        result[work] = {way: [] for way in ways}
        for number in range(rounds):
            for way in ways if number % 2 else reversed(ways):
                # A stream for each turn: what one has on the way does not hinder the other.
                with connect(ways[way]) as stream:
                    step = step_of(kind, stream)
                    rate(step, seconds / 4)  # until it is as fast as it gets
                    result[work][way].append(rate(step, seconds))
    print(json.dumps(result), flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
