"""The VMM's side of the control protocol: each packet has one reply, and the process lives."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from config_factory import make_kernel, make_realm
from jsons import packet
from script import Script, demand

from vambrace.machine.control import Control

OPEN = Path("/proc/self/fd")
FOLDER = Path(tempfile.mkdtemp())
FILES: dict[str, int] = {}
for name, contents in (
    ("config", make_realm(disks=()).encode()),
    ("kernel", make_kernel(64 << 10)),
    ("initrd", b"initrd"),
):
    (FOLDER / name).write_bytes(contents)
    FILES[name] = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
for name in ("kvm", "userfaultfd", "vhost-vsock"):
    FILES[name] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
LOAD = {"id": 1, "op": "load", "instance": "11" * 16, "share": "a5" * 32, "cid": 3, "cpus": [0]}
REQUESTS: list[dict[str, Any]] = [
    LOAD | {"descriptors": list(FILES)},
    LOAD,
    {"id": 2, "op": "start"},
    {"id": 3, "op": "encrypt", "zone": 0, "percent": 5},
    {"id": 9, "op": "change"},
    {"id": 4, "op": "stats"},
    {"id": 7, "op": "sample", "on": True, "zones": [0]},
    {"id": 8, "op": "reuse"},
    {"id": 5, "op": "agent", "data": "eA=="},
    {"id": 10, "op": "console", "data": "eA=="},
    {"id": 6, "op": "destroy"},
]


def run(data: bytes) -> None:
    before = len(list(OPEN.iterdir()))
    converse(Script(data))
    demand(len(list(OPEN.iterdir())) == before, "a descriptor stays open")


def converse(script: Script) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        control = Control(theirs)
        try:
            for _ in range(6):
                message = packet(script, REQUESTS)
                if not message or not script.more:
                    break
                sent = [*FILES.values()][: script.of((0, 6, 5, 3))]
                socket.send_fds(ours, [message], sent if script.number() & 3 else sent[::-1])
                goes_on = control._receive()
                reply = json.loads(ours.recv(1 << 17))
                demand(type(reply["ok"]) is bool and (reply["ok"] or reply["error"]), "a reply is neither yes nor no")
                if not goes_on:
                    break
        finally:
            control._machine.close()
