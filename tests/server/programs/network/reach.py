"""Sends a few MiB to each of the addresses until they have come back from all, and says what came of it.

    python3 reach.py ADDRESS ...
"""

import hashlib
import os
import socket
import sys
import threading
import time

PORT = 9000
SIZE = 3 << 20


def reach(address: str) -> str:
    data = os.urandom(SIZE)
    back = hashlib.sha256()
    try:
        with socket.create_connection((address, PORT), timeout=3) as stream:
            stream.settimeout(60)

            def send() -> None:
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            while part := stream.recv(1 << 16):
                back.update(part)
            sender.join()
    except OSError as error:
        return f"failed: {error}"
    return "reached" if back.digest() == hashlib.sha256(data).digest() else "changed"


for address in sys.argv[1:]:
    while (outcome := reach(address)) != "reached":
        print(address, outcome, flush=True)
        time.sleep(1)
    print(address, outcome, flush=True)
time.sleep(3600)
