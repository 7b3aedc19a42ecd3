"""Runs every probe of ``attacks`` as root of this machine, then in VMMs that the product's launcher has jailed.

    python3 -m testbed.attacker TARGETS      one JSON object each way

``targets`` is what there is to reach; what this makes itself is added: a process that nobody minds being traced, an
abstract socket, a folder, a segment of shared memory. The answer has for each probe what came of it: ``reached …``,
``refused …`` or ``ended N``, the process's status:

    free      a child of this process: root, without any jail
    walled    a VMM in its jail whose system calls are not filtered: what namespaces, root and identity do alone
    jailed    a VMM as the product's; with ``some``, only these probes are tried: most of them end a VMM

Copied into the emulated host with its neighbours; needs the standard library and vambrace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed import attacks
from vambrace.jail import linux
from vambrace.jail.launcher import Launcher, Newcomer

COMMAND = (sys.executable, "-P", "-B", "-m", "testbed.attacked")
#: A filter of one instruction: return SECCOMP_RET_ALLOW (linux/filter.h, linux/seccomp.h).
ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF_0000)
_ABSTRACT = "vambrace-attack"


def main() -> None:
    request = json.loads(sys.argv[1])
    with made() as own:
        targets = own | request["targets"]
        targets["victims"] = [own["victim"], *targets["victims"]]  # whom it hurts, only in the jail
        launcher = launcher_of()
        walled = launcher_of()
        walled._program = ALLOW_ALL
        some = request.get("some") or list(attacks.PROBES)
        print(json.dumps({
            "free": {name: free(name, targets) for name in attacks.PROBES},
            "walled": attack(walled, list(attacks.PROBES), targets),
            "jailed": attack(launcher, some, targets),
        }))  # fmt: skip


def launcher_of() -> Launcher:
    return Launcher(COMMAND, reads=[str(Path(__file__).resolve().parents[1])])


@contextlib.contextmanager
def made() -> Iterator[dict[str, Any]]:
    """What the probes may reach without harm to anybody."""
    word = ctypes.create_string_buffer(b"another domain's secret")
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as victim,
    ):
        abstract.bind("\0" + _ABSTRACT)
        abstract.listen()
        segment = attacks.call("shmget", 0x7661_6D62, 4096, 0o1666)
        libc = ctypes.CDLL(None)
        try:
            yield {
                "folder": folder,
                "abstract": _ABSTRACT,
                "port": server.getsockname()[1],
                "victim": victim.pid,
                "segment": 0x7661_6D62,
                "program": os.path.realpath(sys.executable),
                "maker": os.getpid(),
                "scratch": ctypes.addressof(word),
                "reads": os.getpid(),
                "address": ctypes.addressof(word),
                "victims": [],
            }
        finally:
            libc.shmctl(segment, 0, None)  # IPC_RMID
            victim.kill()


def free(name: str, targets: attacks.Targets) -> str:
    """Try it as root, in a child that ends then."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.CLONE_NEWNS)  # what it mounts is gone with it
            linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
            result = f"reached {attacks.PROBES[name](targets)}"
        except OSError as error:
            result = f"refused {error}"
        except BaseException as error:
            result = repr(error)
        os.write(writer, result.encode()[:4096])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        result = said.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return result


def attack(launcher: Launcher, names: list[str], targets: attacks.Targets) -> dict[str, str]:
    """Try each in a VMM, in a new one wherever it ended the one before."""
    results = {}
    with contextlib.ExitStack() as stack:
        vmm = None
        for name in names:
            vmm = vmm or stack.enter_context(Vmm(launcher))
            results[name] = vmm.attack(name, targets)
            if results[name].startswith("ended"):
                vmm = None
    return results


class Vmm:
    """One attacked VMM; a context manager, that ends it."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._newcomer: Newcomer | None = launcher.bring_in(theirs.fileno(), sys.stderr.fileno())

    def __enter__(self) -> Vmm:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._end()

    def attack(self, name: str, targets: attacks.Targets) -> str:
        self._control.send(json.dumps({"id": 1, "op": "attack", "probe": name, "targets": targets}).encode())
        packet = self._control.recv(1 << 16)
        if not packet:
            return f"ended {self._end()}"
        answer = json.loads(packet)
        return f"reached {answer['reached']}" if "reached" in answer else f"refused {answer.get('refused', answer)}"

    def _end(self) -> int:
        newcomer, self._newcomer = self._newcomer, None
        if newcomer is None:
            return 0
        os.close(newcomer.process)
        return self._launcher.reap(newcomer.pid)


if __name__ == "__main__":
    main()
