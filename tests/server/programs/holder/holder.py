"""Holds a secret that it makes itself in 1024 pages, tells its owner in its log (as hexadecimal), and never ends.

Says in a measurement register that it holds one. Serves on its own published port, and on that of another application.
"""

import json
import os
import socket
import threading
import time

PAGES = 1024

OWN, OTHERS = 8002, 8001


def told(**request: object) -> bytes:
    with socket.socket(socket.AF_UNIX) as desk:
        desk.connect(os.environ["VAMBRACE_AGENT"])
        desk.sendall(json.dumps(request).encode() + b"\n")
        return desk.recv(1 << 10)


def echo(listener: socket.socket) -> None:
    while True:
        with listener.accept()[0] as stream:
            while data := stream.recv(1 << 10):
                stream.sendall(data)


for port in (OWN, OTHERS):
    threading.Thread(target=echo, args=(socket.create_server(("127.0.0.1", port)),), daemon=True).start()
secret = b"CANARY" + os.urandom(26)
held = bytearray(secret * (4096 // len(secret)) * PAGES)
assert json.loads(told(op="extend", register=1, text="holding a secret"))["ok"]
print(f"holding {secret.hex()}", flush=True)
while True:
    held[0] = held[0]
    time.sleep(sum(held[::4096]) * 0 + 0.5)
