"""This side of the door: commands as root on the emulated host."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vambrace.emulator.hostroot import Variant
from vambrace.emulator.server import Server

HERE = Path(__file__).parent
PORT = "vambrace.door"


def variant(name: str = "door", packages: Sequence[str] = (), without: Sequence[str] = ()) -> Variant:
    """A host with a door, with Debian's ``packages`` beside the product's and ``without`` some command line words."""
    return Variant(
        name,
        packages=tuple(packages),
        files={
            "/usr/lib/vambrace/door": (HERE / "door-server.py").read_text(),
            "/usr/lib/vambrace/door-init": (HERE / "door-init.sh").read_text(),
        },
        init="/usr/lib/vambrace/door-init",
        without=tuple(without),
        ports=(PORT,),
    )


@dataclass(frozen=True)
class Done:
    """What a command came to: exit code, and standard output and error together."""

    code: int
    output: str


class Door:
    """A connection; a context manager. The server must have been built as ``variant`` says."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        # AF_UNIX paths are short; the directory may not be.
        directory = os.open(server.home, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{PORT}.sock")
        finally:
            os.close(directory)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def run(self, *command: str, data: bytes = b"", seconds: float = 120) -> Done:
        """Run ``command`` with ``data`` as its input; exit code 124 after ``seconds``."""
        return self._ask({"run": list(command), "data": base64.b64encode(data).decode(), "seconds": seconds}, seconds)

    def shell(self, text: str, *, seconds: float = 120) -> Done:
        """The same for a text of the shell."""
        return self.run("/bin/busybox", "sh", "-c", text, seconds=seconds)

    def python(self, text: str, *words: str, seconds: float = 120) -> Done:
        """The same for a Python program, which gets ``words`` as its arguments."""
        return self.run("python3", "-B", "-c", text, *words, seconds=seconds)

    def put(self, path: str, data: bytes) -> None:
        """Write a file of the host (the root is read-only; /run and /tmp are not)."""
        self._ask({"put": path, "data": base64.b64encode(data).decode()}, 60)

    def _ask(self, request: dict[str, object], seconds: float) -> Done:
        self._socket.settimeout(seconds + 60)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the door closed: the server is gone")
        answer = json.loads(line)
        return Done(answer["code"], base64.b64decode(answer["output"]).decode(errors="replace"))
