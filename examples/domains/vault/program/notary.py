"""Stamps entries of a chain, each with the hash of the one before."""

import hashlib
import time

stamp = hashlib.sha256(b"vault").digest()
for number in range(1, 6):
    stamp = hashlib.sha256(stamp + number.to_bytes(8, "big")).digest()
    print(f"entry {number} has the stamp {stamp.hex()[:16]}", flush=True)
    time.sleep(0.5)
