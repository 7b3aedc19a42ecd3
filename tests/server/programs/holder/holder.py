"""Holds a secret that it makes itself in 1024 pages, tells its owner in its log (as hexadecimal), and never ends."""

import os
import time

PAGES = 1024

secret = b"CANARY" + os.urandom(26)
held = bytearray(secret * (4096 // len(secret)) * PAGES)
print(f"holding {secret.hex()}", flush=True)
while True:
    held[0] = held[0]
    time.sleep(sum(held[::4096]) * 0 + 0.5)
