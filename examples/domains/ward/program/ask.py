"""Asks about every ward for a while, where the environment says; the registry may come later."""

import os
import socket
import time


def ask(question: str) -> str:
    host, port = os.environ["ENDPOINT_RECORDS"].split(":")
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=60)
            with connection, connection.makefile("rw") as lines:
                lines.write(question + "\n")
                lines.flush()
                if answer := lines.readline().strip():
                    return answer
        except OSError:
            pass
        time.sleep(1)


end = time.monotonic() + 90
while time.monotonic() < end:
    beds = {name: int(ask(name)) for name in ("north", "south", "west")}
    print(f"beds of all wards: {sum(beds.values())}", flush=True)
    time.sleep(5)
ask("thanks")
