"""In a guest, as its first program: does a piece of work for as long as it is told to, again and again.

``boot`` is PID 1 of the benchmark's guest and serves the agent's port; ``serve`` does the same over standard input and
output, on any machine. ``command`` starts either.

Requests and replies are JSON lines. ``{"work": NAME}`` makes the work's data and answers ``{"ready": NAME}``;
``{"seconds": S}`` works for so long, and answers ``operations`` and the ``seconds`` that they took.

Only the standard library: a Realm's base has nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.parts.works import WORKS, Step

PORT = "vambrace.agent"
CGROUPS = Path("/sys/fs/cgroup")
PORTS = Path("/sys/class/virtio-ports")
#: The NUMA node of the application's zone.
NODE = "1"
#: The word of the kernel's command line with a card's address.
ADDRESS = "bench.address="
FILES = ("aio.py", "driver.py", "works.py")


def command(part: str, root: Path = Path(__file__).parents[2]) -> list[str]:
    """The words that run ``boot``, ``monitor`` or ``serve`` of the files below ``root``."""
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from bench.parts import driver; driver.main()"
    return ["python3", "-I", "-S", "-B", "-c", program, part]


def serve(read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
    """Answer requests until there are no more."""
    step: Step | None = None
    while line := read():
        request = json.loads(line)
        if "work" in request:
            step = WORKS[request["work"]](random.Random(1))
            reply: dict[str, object] = {"ready": request["work"]}
        elif step is None:
            reply = {"error": "no work was chosen"}
        else:
            operations, started = 0, time.monotonic()
            end = started + request["seconds"]
            while (now := time.monotonic()) < end:
                operations += step()
            reply = {"operations": operations, "seconds": now - started}
        write(json.dumps(reply).encode() + b"\n")


def boot() -> None:
    """What a Realm's init and agent do for an application, as far as it matters here: its memory is in its own zone."""
    libc = ctypes.CDLL(None, use_errno=True)
    mounts = (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp"), ("cgroup2", "/sys/fs/cgroup"))
    for kind, place in mounts:
        if libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None):
            raise OSError(ctypes.get_errno(), f"mount {place}")
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    for word in Path("/proc/cmdline").read_text().split():
        if word.startswith(ADDRESS):
            for words in (["addr", "add", word.removeprefix(ADDRESS), "dev", "eth0"], ["link", "set", "eth0", "up"]):
                if os.spawnv(os.P_WAIT, "/usr/bin/busybox", ["busybox", "ip", *words]):
                    raise OSError(f"ip {words}")
    group = CGROUPS / "work"
    group.mkdir()
    (group / "cpuset.mems").write_text(NODE)
    (group / "cgroup.procs").write_text("0")
    # A new process: what this one has lies in the system's zone.
    if os.fork():
        while True:
            os.wait()
    os.execv(sys.executable, command("monitor"))


def monitor() -> None:
    """Serve the monitor's port, and say first that this guest is ready."""
    device = -1
    while device < 0:
        time.sleep(0.05)
        for name in PORTS.glob("*/name"):
            if name.read_text().strip() == PORT:
                device = os.open(f"/dev/{name.parent.name}", os.O_RDWR)
    os.write(device, b'{"ready": "guest"}\n')
    waiting = b""

    def read() -> bytes:
        nonlocal waiting
        while b"\n" not in waiting:
            waiting += os.read(device, 4096)
        line, _, waiting = waiting.partition(b"\n")
        return line

    def write(data: bytes) -> None:
        os.write(device, data)

    serve(read, write)


def main() -> None:
    match sys.argv[1]:
        case "boot":
            boot()
        case "monitor":
            monitor()
        case "serve":
            serve(sys.stdin.buffer.readline, _print)


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

