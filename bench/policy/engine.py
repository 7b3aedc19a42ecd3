"""The real policy, core/zone.c, compiled into a library and driven through a trace by replay.c."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
CORE = FOLDER.parents[1] / "core"
# The assertions of zone.c stay in, as they do in the product.
_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-UNDEBUG"]


class EngineError(Exception):
    """zone.c does not compile, or refused a trace."""


@dataclass(frozen=True)
class Replay:
    """What one trace cost: numbers of faults, and the largest number of plaintext pages."""

    misses: int
    minor: int
    plaintext_max: int


class _Result(ctypes.Structure):
    """struct replay of replay.c."""

    _fields_ = (
        ("misses", ctypes.c_uint64),
        ("minor", ctypes.c_uint64),
        ("plaintext_max", ctypes.c_uint32),
        ("broken", ctypes.c_uint32),
    )


class Engine:
    """``core`` is the folder of zone.c and zone.h: another one to compare a change with what is there."""

    def __init__(self, core: Path = CORE) -> None:
        """Compiles. Raises EngineError."""
        with tempfile.TemporaryDirectory() as directory:
            library = Path(directory, "replay.so")
            sources = [FOLDER / "replay.c", core / "zone.c"]
            command: list[str | Path] = ["cc", *_FLAGS, f"-I{core}", "-o", library, *sources]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise EngineError("cc is missing: run 'make packages'") from error
            except subprocess.CalledProcessError as error:
                raise EngineError(f"{core / 'zone.c'} does not compile: {error.stderr}") from error
            self._replay = ctypes.CDLL(str(library)).vb_replay  # stays mapped when the file is gone
        self._replay.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint64,
            ctypes.POINTER(_Result),
        ]
        self._replay.restype = ctypes.c_int

    def replay(self, references: array[int], pages: int, limit: int, check: int = 0) -> Replay:
        """At most ``limit`` of ``pages`` are plaintext; ``check``: look through the queues each so many faults.

        Raises EngineError: a reference is no page, or the queues were found inconsistent.
        """
        if references.itemsize != 4:
            raise EngineError("references are an array of 32-bit numbers, array('I')")
        address, count = references.buffer_info()
        result = _Result()
        if self._replay(address, count, pages, limit, check, ctypes.byref(result)):
            raise EngineError(f"the trace cannot be replayed with {limit} of {pages} pages")
        if result.broken:
            raise EngineError(f"inconsistent queues, {result.broken} times")
        return Replay(result.misses, result.minor, result.plaintext_max)
