"""Runs on each virtual processor in turn and writes which it was given and which it ran on, and when that was."""

import json
import os
import time
from pathlib import Path

given = sorted(os.sched_getaffinity(0))
ran = []
for processor in given:
    os.sched_setaffinity(0, {processor})
    sum(range(100_000))
    # proc(5), field 39: the processor it ran on last.
    ran.append(int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36]))
Path("/results/worker/processors.json").write_text(json.dumps({"given": given, "ran": ran, "time": time.time()}))
