"""Carries one connection from the emulated server to a port of this machine; QEMU starts it for each (``guestfwd``).

Standard library only: it runs by its path, without anything of this package.
"""

from __future__ import annotations

import os
import select
import socket
import sys

CHUNK = 64 << 10


def main() -> None:
    # What QEMU gives it as 0, 1 and 2 is the connection: nothing but what was sent may be written there.
    inside = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        outside = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
    except OSError:
        return
    outside.settimeout(None)
    ways = {inside: outside, outside: inside}
    while ways:
        for source in select.select(list(ways), [], [])[0]:
            target = ways[source]
            try:
                data = source.recv(CHUNK)
                target.sendall(data)
            except OSError:
                return
            if not data:
                del ways[source]
                try:
                    target.shutdown(socket.SHUT_WR)
                except OSError:
                    return


if __name__ == "__main__":
    main()
