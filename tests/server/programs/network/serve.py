"""Sends back what it gets, at every address of this Realm."""

import socket
import threading

PORT = 9000


def echo(stream: socket.socket) -> None:
    with stream:
        while data := stream.recv(1 << 16):
            stream.sendall(data)


server = socket.create_server(("0.0.0.0", PORT))
print("serving", flush=True)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
