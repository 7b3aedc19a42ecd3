"""Works in rounds for as long as it may: reads files from its disk anew, computes, and writes down how far it is."""

import glob
import hashlib
import json
import os
import random

FILES = sorted(glob.glob(f"{os.path.dirname(json.__file__)}/../*.py"))[:20]


def from_disk() -> str:
    digest = hashlib.sha256()
    for path in FILES:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digest.update(file.read())
    return digest.hexdigest()


data = random.Random(7).randbytes(1 << 20)
first, chain, rounds = from_disk(), b"", 0
while True:
    chain = hashlib.sha256(chain + data).digest()
    rounds += 1
    with open("/results/steady/new", "w") as file:
        json.dump({"rounds": rounds, "chain": chain.hex(), "same": from_disk() == first}, file)
    os.rename("/results/steady/new", "/results/steady/chain.json")
    print("round", rounds, flush=True)
