"""Fails each time, a while after it has said the how manieth time this is."""

import sys
import time
from pathlib import Path

count = Path("/results/flaky/count")
count.write_text(count.read_text() + "." if count.exists() else ".")
print(f"attempt {len(count.read_text())}", flush=True)
time.sleep(4)
sys.exit(3)
