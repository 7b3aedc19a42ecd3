"""Fetches from a web server, and sends to it, where the environment says that it is; says what came of each try."""

import hashlib
import os
import random
import time
import urllib.request

URL = f"http://{os.environ['ENDPOINT_RECORDS']}/"
BODY = random.Random(2).randbytes(2 << 20)

for _ in range(30):
    try:
        with urllib.request.urlopen(URL, timeout=120) as answer:
            print("got", hashlib.sha256(answer.read()).hexdigest(), flush=True)
        with urllib.request.urlopen(URL, data=BODY, timeout=120) as answer:
            print("sent", hashlib.sha256(BODY).hexdigest() == answer.read().decode(), flush=True)
        break
    except OSError as error:
        print("failed:", error, flush=True)
        time.sleep(1)
print("done", flush=True)
time.sleep(100_000)
