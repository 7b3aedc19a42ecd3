"""The emulated machine of these tests, and what they look at from outside: memory, disk, processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from volatile import Volatile

from testbed import door
from vambrace.debian.cache import Cache
from vambrace.emulator import memory, qemu
from vambrace.emulator.hostroot import PRODUCT, Variant
from vambrace.emulator.server import Server
from vambrace.host.agent import BACKLOG_BYTES

DOOR = door.variant()
# A host whose kernel lets root read any physical address: the hardware's refusals are left.
OPEN = replace(door.variant("open", without=["lockdown=confidentiality"]), words=("iomem=relaxed",))

VENDOR = "test-vendor"

# What the host may keep of a Realm's plaintext, in pages (docs/threat-model.md).
HOST_BOUND = BACKLOG_BYTES // memory.PAGE_SIZE

PROCESSES = """
import os, pathlib, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        words = path.read_bytes().split(b"\\0")
    except OSError:
        continue
    if sys.argv[1].encode() in words and path.parent.name != str(os.getpid()):
        print(path.parent.name)
"""

# Of three kinds of Realms, as the daemon asks TrustZone for them.
SEALING_KEYS = """
from vambrace.trustzone import SealingClaims, TrustZone
owner = bytes(64)
with TrustZone() as session:
    for claims in (SealingClaims(owner), SealingClaims(owner, name="a"), SealingClaims(owner, name="a", version=1)):
        key = session.sealing_key(claims)
        assert session.sealing_key(claims) == key
        print(key.hex())
"""


class Machine:
    """One machine, with one fuse, that runs one host or another. ``old_state`` is its state disk as it was at first."""

    def __init__(self, home: Path, make: Callable[[Variant], Server]) -> None:
        self.home = home
        self.old_state = home.parent / "old-state.img"
        self.said: list[str] = []
        self.sealing_keys: dict[str, list[str]] = {}  # of each host that was asked for them
        self._make = make
        self._server: Server | None = None

    def run(self, variant: Variant) -> Server:
        """The machine with this host: as it is, or started. Only the product's host resumes a saved state."""
        server = self._server
        if server is None or server.variant != variant or qemu.running(self.home) is None:
            self.stop()
            server = self._server = self._make(variant)
            self.said.clear()
            server.up(self.tell, cold=variant != PRODUCT)
            if not self.old_state.exists():
                self._keep_state(server)
        return server

    def stop(self) -> None:
        if self._server is not None:
            self._server.down()

    @contextmanager
    def power_cut(self) -> Iterator[None]:
        """In the end its power is cut: of what its host writes meanwhile, what it has not flushed is lost."""
        disk = Volatile(self.home / "state.img")
        with qemu.Monitor(self.home / "qmp.sock") as monitor:
            disk.insert(monitor, "state")
        try:
            yield
        finally:
            pid = qemu.running(self.home)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert qemu.wait_gone(pid, 20)
            disk.settle()

    def tell(self, text: str) -> None:
        self.said.append(text)
        print(text)

    def _keep_state(self, server: Server) -> None:
        with qemu.Monitor(server.home / "qmp.sock") as monitor:
            monitor.execute("stop")
            try:
                copy_sparse(server.state, self.old_state)
            finally:
                monitor.execute("cont")


def play(module: str, *words: str, server: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """Run the demo ``module`` of the examples at the server in ``server``, as its user would; its report, and what it
    has said."""
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", module, *words, "--work", folder / "work", "--report", report],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "VAMBRACE_SERVER": str(server)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads(report.read_text()), done.stdout


def new_server(home: Path, **options: object) -> Server:
    """A server on free ports. The vendor is the same in all runs: what was built holds its key, and stays cached."""
    cache = Cache()
    return Server(
        home, port=free_port(), broker=free_port(), cache=cache, vendor=cache.root / VENDOR, **options
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_sparse(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


@contextmanager
def dumped(server: Server, folder: Path) -> Iterator[Path]:
    """The server's memory now, in a file: the normal world's RAM, all of it (the secure world's is elsewhere)."""
    file = folder / "memory.dump"
    server.dump(file)
    try:
        yield file
    finally:
        file.unlink()


def pages(server: Server, folder: Path, *needles: bytes) -> list[int]:
    """In how many pages of the server's memory each of the ``needles`` is."""
    with dumped(server, folder) as dump:
        found = [len(memory.pages_with(dump, needle)) for needle in needles]
        print(f"pages: {found}")
    return found


def holds(file: Path, needle: bytes) -> bool:
    """Whether ``needle`` is anywhere in ``file``, which may have holes."""
    with file.open("rb") as source:
        descriptor, end = source.fileno(), file.stat().st_size
        position = 0
        while position < end:
            try:
                position = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # no data from here on
                return False
            stop = os.lseek(descriptor, position, os.SEEK_HOLE)
            while position < stop:
                block = os.pread(descriptor, (1 << 24) + len(needle) - 1, position)
                if needle in block:
                    return True
                position += 1 << 24
            position = stop
    return False


def sealing_keys(host: door.Door) -> list[str]:
    """Three sealing keys of the host that runs, in hexadecimal."""
    done = host.python(SEALING_KEYS)
    assert done.code == 0, done.output
    return done.output.split()


def files_with(server: Server, host: door.Door, needle: bytes) -> list[str]:
    """Which of the files that the host wrote hold ``needle``: its state disk and its logs."""
    assert host.shell("busybox sync").code == 0
    files = (server.state, server.home / "console.log", server.home / "secure.log")
    return [file.name for file in files if holds(file, needle)]


def processes(host: door.Door, word: str) -> set[int]:
    """The host's processes with ``word`` in their command line."""
    done = host.python(PROCESSES, word)
    assert done.code == 0, done.output
    return {int(line) for line in done.output.split()}


def vmms(host: door.Door) -> set[int]:
    return processes(host, "vambrace.machine")


def one_waits(host: door.Door) -> bool:
    """Whether soon no VMM process is left but the one that waits for the next Realm."""
    return eventually(lambda: len(vmms(host)) == 1, 30)


def vmm_of(host: door.Door, uuid: str) -> int:
    """The process that runs Realm ``uuid``."""
    record = json.loads(host.run("cat", f"/state/host/domains/{uuid}.json").output)
    assert record["vmm_pid"] in vmms(host)
    return int(record["vmm_pid"])


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
