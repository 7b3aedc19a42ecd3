"""Fails each time, when somebody connects after it has said the how manieth time this is.

    python3 flaky.py PORT
"""

import socket
import sys
from pathlib import Path

door = socket.create_server(("127.0.0.1", int(sys.argv[1])))
count = Path("/results/flaky/count")
count.write_text(count.read_text() + "." if count.exists() else ".")
print(f"attempt {len(count.read_text())}", flush=True)
door.accept()[0].recv(1)  # the end of it: until then it is seen who listens
sys.exit(3)
