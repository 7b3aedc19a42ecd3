"""Records the page references of an unmodified program: record.c, preloaded, watches its heap.

    python3 -m bench.policy.recorder FILE.trace COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path

from bench.policy import workloads
from bench.policy.traces import Trace, numbered, write

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
MOST = 2_000_000
# As record.c says.
_FAILED = 120
_COUNT_BYTES = 8
_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
_SOURCES = [FOLDER / "record.c", ROOT / "core/uffd.c", ROOT / "core/status.c"]


class RecorderError(Exception):
    """The program was not recorded: no compiler, no userfaultfd, or it failed itself."""


def record(command: Sequence[str], path: Path, most: int = MOST, feed: bytes = b"") -> Trace:
    """Runs the command to its end with ``feed`` on standard input, and writes at most ``most`` faults to ``path``.

    It is a program, not a script that starts others: it must not fork. Raises RecorderError.
    """
    with tempfile.TemporaryDirectory() as directory:
        library, raw = Path(directory, "record.so"), Path(directory, "raw")
        raw.touch()
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "RECORD_FILE": str(raw),
            "RECORD_MOST": str(most),
            "PYTHONMALLOC": "malloc",  # Python's own allocator has its memory from mmap, which is not recorded
            "PYTHONHASHSEED": "0",
        }
        try:
            subprocess.run(["cc", *_FLAGS, "-o", library, *_SOURCES], check=True, capture_output=True)
            done = subprocess.run(command, cwd=ROOT, env=environment, input=feed, capture_output=True)
        except FileNotFoundError as error:
            raise RecorderError(f"{error.filename} is missing") from error
        except subprocess.CalledProcessError as error:
            raise RecorderError(f"record.c does not compile: {error.stderr.decode(errors='replace')}") from error
        if done.returncode:
            what = "cannot be recorded" if done.returncode == _FAILED else f"ended with {done.returncode}"
            raise RecorderError(f"{command[0]} {what}: {done.stderr.decode(errors='replace').strip()}")
        trace = numbered(path.stem, _records(raw))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, trace)
    return trace


def record_workload(name: str, folder: Path, data: int = 1) -> Trace:
    """One of the workloads with this data, into ``folder``/NAME.trace. Raises RecorderError."""
    command, feed = workloads.command(name, data)
    return record(command, folder / f"{name}.trace", feed=feed)


def _records(raw: Path) -> array[int]:
    with raw.open("rb") as file:
        count = int.from_bytes(file.read(_COUNT_BYTES), sys.byteorder)
        numbers = array("I")
        numbers.fromfile(file, count)
    if not count:
        raise RecorderError("no page was recorded: a program without the C library's malloc?")
    return numbers


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) < 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        trace = record(words[1:], Path(words[0]))
    except RecorderError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(trace.references)} references to {trace.pages} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
