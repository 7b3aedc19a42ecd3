"""A stand-in for ``python3 -m vambrace.machine``: the control protocol without a machine.

The "kernel" it is told to load is a JSON object: ``hub`` is the path of a SOCK_SEQPACKET listener of the
test; ``load``, ``start`` and so on say what the fake does then: ``ok``, ``error``, ``die``, ``garbage``,
``silent``; ``eof``: ``ignore`` makes it live on without its daemon. ``encrypt``: ``slow`` is a change that is done
when it was looked at four times, ``stuck`` one that is done when there is a file ``release``, ``lies`` one of which it
says nonsense. It has 64 pages of memory, at the ``address`` of its greeting. The test gets a copy of every request,
and of every answer, through the hub; what it sends there goes to the daemon as it is, but ``{"exit": n}`` ends it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import os
import select
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any


class FakeVmm:
    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.hub: socket.socket | None = None
        self.script: dict[str, str] = {}
        self.pages = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.left = 0  # of 400 pages of a slow change

    def run(self) -> int:
        while True:
            sockets = [self.control, *([self.hub] if self.hub else [])]
            for ready in select.select(sockets, [], [])[0]:
                packet, files, _, _ = socket.recv_fds(ready, 1 << 17, 64)
                if ready is self.hub:
                    if not packet:
                        self.hub = None
                    elif packet.startswith(b'{"exit"'):
                        return int(json.loads(packet)["exit"])
                    else:
                        self.control.send(packet)
                elif not packet:
                    if self.script.get("eof") == "ignore":
                        signal.pause()
                    return 0
                elif (status := self.serve(json.loads(packet), files)) is not None:
                    return status

    def serve(self, request: dict[str, Any], files: list[int]) -> int | None:
        if "answer" in request:  # to what the test has asked in the VMM's name
            assert self.hub is not None
            self.hub.send(json.dumps(request).encode())
            return None
        op = request["op"]
        answer: dict[str, Any] = {}
        if op == "load":
            contents = dict(zip(request["descriptors"], map(read, files), strict=True))
            answer["measurement"] = self.load(contents["config"], contents["kernel"])
            answer["config"] = hashlib.sha256(contents["config"]).hexdigest()
        if op == "stats":
            answer["zones"] = [{"pages": 1, "percent": 50}]
        if op in ("encrypt", "change"):
            answer |= self.change(op)
        if op == "reuse":
            answer |= {"zones": [{"touches": 0}], "fault_ns": 5}
        if self.hub:
            self.hub.send(json.dumps(request).encode())
        match self.script.get(op, "ok"):
            case "ok" | "slow" | "stuck" | "lies":
                self.control.send(json.dumps({"id": request["id"], "ok": True, **answer}).encode())
            case "error":
                refusal = {"id": request["id"], "ok": False, "error": f"{op} fails", "hint": "a test"}
                self.control.send(json.dumps(refusal).encode())
            case "garbage":
                self.control.send(b"\xff\x00 not JSON")
            case "die":
                print("fake VMM dies as told", file=sys.stderr)
                return 1
        return 0 if op == "destroy" else None

    def change(self, op: str) -> dict[str, Any]:
        pace = {"slow": 100, "stuck": 0}.get(self.script.get("encrypt", "ok"), 400)
        if not pace and Path(self.script.get("release", "/nowhere")).exists():
            pace = 400
        self.left = 400 if op == "encrypt" else self.left
        if self.script.get("encrypt") == "lies":
            return {"done": 1, "left": -1, "total": True}
        self.left = max(0, self.left - pace) if op == "change" or pace == 400 else self.left
        return {"done": not self.left, "left": self.left, "total": 400}

    def load(self, config: bytes, kernel: bytes) -> str:
        self.script = json.loads(kernel)
        self.hub = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hub.connect(self.script["hub"])
        self.pages[:] = b"x" * len(self.pages)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        hello = {"pid": os.getpid(), "environment": sorted(os.environ), "address": address}
        self.hub.send(json.dumps(hello).encode())
        return hashlib.sha256(config + kernel).hexdigest()


def read(file: int) -> bytes:
    """What a file has; nothing of a device."""
    with open(file, "rb") as opened:
        return opened.read() if stat.S_ISREG(os.fstat(file).st_mode) else b""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().control) as control:
        return FakeVmm(control).run()


if __name__ == "__main__":
    sys.exit(main())
