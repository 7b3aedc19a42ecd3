"""A saved state of the emulated server: its memory and devices at the gate, before any key exists.

The state is one moment of one machine. It holds for exactly the hardware, firmware, fuse and host that it was taken
from: ``fingerprint`` stands for all of them, and a state with another one is not resumed but taken anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from vambrace.emulator import qemu
from vambrace.errors import ServerError

_BLOCK = 64 << 10


class SavedState:
    """The state in ``directory``, valid for ``fingerprint`` only."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self._next = directory.with_name(directory.name + ".new")

    def ready(self) -> bool:
        """Whether there is a whole one for this fingerprint."""
        try:
            return (self.directory / "fingerprint").read_text() == self.fingerprint
        except OSError:
            return False

    def discard(self) -> None:
        for directory in (self.directory, self._next):
            shutil.rmtree(directory, ignore_errors=True)

    def save(self, pid: int, monitor: qemu.Monitor) -> None:
        """Keep the state of machine ``pid`` behind ``monitor``, which stands still meanwhile. Raises ServerError."""
        self.discard()
        try:
            self._next.mkdir(mode=0o700)
            stream = self._next / "devices"
            stream.touch(mode=0o600)
            monitor.execute("stop")
            try:
                qemu.migrate(monitor, "migrate", stream)
                with qemu.memory_of(pid).open("rb") as memory:
                    copy_sparse(memory, self._next / "ram")
            finally:
                monitor.execute("cont")
            (self._next / "fingerprint").write_text(self.fingerprint)
            self._next.rename(self.directory)
        except OSError as error:
            raise ServerError(f"the state cannot be saved: {error.strerror}", hint="free a gigabyte") from error
        finally:
            shutil.rmtree(self._next, ignore_errors=True)

    def saved(self) -> qemu.Saved:
        """What a machine resumes from; its writes do not reach it."""
        return qemu.Saved(self.directory / "ram", self.directory / "devices")


def copy_sparse(source: BinaryIO, target: Path) -> None:
    """Copy a new file, readable by its owner only; runs of zeros become holes. Raises OSError."""
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := source.read(_BLOCK):
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
        file.truncate()


def fingerprint(words: Iterable[str], files: Iterable[Path]) -> str:
    """One hash (hex) over ``words`` and the contents of ``files``."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
