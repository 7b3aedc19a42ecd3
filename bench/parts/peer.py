"""At the host: the other end of a guest's TCP connections.

    python3 peer.py ADDRESS PORT

The first byte says what the guest wants: ``s`` to send, ``d`` to be sent to, ``e`` to have bytes sent back. Only the
standard library: this file is copied into the host.

Both ends use Reno. CUBIC, the kernel's own choice, leaves its slow start as soon as round trips get longer (HyStart),
and on an emulated processor they do so by chance: one connection was ten times as fast as the next, whoever served
its card.
"""

from __future__ import annotations

import socket
import sys
import threading

MIB = 1 << 20


def serve(stream: socket.socket) -> None:
    buffer = memoryview(bytearray(MIB))
    with stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        kind = stream.recv(1)
        try:
            while kind == b"d":
                stream.sendall(buffer)
            while length := stream.recv_into(buffer):
                if kind == b"e":
                    stream.sendall(buffer[:length])
        except OSError:
            pass  # the guest has ended


def main() -> None:
    with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
        print("ready", flush=True)
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
