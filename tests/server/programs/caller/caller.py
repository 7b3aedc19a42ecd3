"""Sends to who answers on the network card, and says whether the same came back."""

import os
import socket
import time

for _ in range(50):
    try:
        peer = socket.create_connection(("10.0.3.100", 7), timeout=20)
        break
    except OSError:
        time.sleep(0.2)
data = os.urandom(100_000)
peer.sendall(data)
peer.shutdown(socket.SHUT_WR)
back = b""
while piece := peer.recv(1 << 16):
    back += piece
print("the same came back" if back == data else f"{len(back)} bytes came back", flush=True)
time.sleep(3600)
