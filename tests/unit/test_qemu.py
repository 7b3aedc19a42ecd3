"""The emulator's process: when it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vambrace.emulator.qemu import wait_gone

# The first thread ends, as that of a process does that is being killed; another one goes on.
OUTLIVED = """
import ctypes, os, threading
threading.Thread(target=os.read, args=(0, 1)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""


def test_a_process_is_gone_with_its_last_thread() -> None:
    """Until then its files are open, and the lock on its disk is held."""
    with subprocess.Popen([sys.executable, "-c", OUTLIVED], stdin=subprocess.PIPE) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            os.sched_yield()
        assert not wait_gone(process.pid, 0.2)
        process.kill()
        assert wait_gone(process.pid, 20)
        assert not Path(f"/proc/{process.pid}").exists()
