"""How commands speak: results on stdout (text or JSON), progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vambrace.errors import UsageError, VambraceError

EVERY_SECONDS = 0.2


class Output:
    """``json_mode`` prints one JSON value instead of text. ``progress`` forces progress on or off."""

    def __init__(self, *, json_mode: bool = False, progress: bool | None = None) -> None:
        self.json_mode = json_mode
        self._terminal = sys.stderr.isatty()
        self._show = self._terminal if progress is None else progress
        self._last = ("", -1)
        self._shown = 0.0
        self._open_line = False

    def result(self, value: Any, lines: Sequence[str]) -> None:
        """The command's one result: ``value`` as JSON, or ``lines``."""
        self.end_progress()
        if self.json_mode:
            print(json.dumps(value, indent=2))
        else:
            for line in lines:
                print(printable(line))
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """A step that was done, for people: not in JSON mode."""
        if not self.json_mode:
            self.end_progress()
            print(printable(line), flush=True)

    def raw(self, data: bytes, prefix: str = "") -> None:
        """Output of a program in a Realm. Towards a terminal its control characters are taken away."""
        self.end_progress()
        if sys.stdout.isatty() or prefix:
            for line in data.decode(errors="replace").splitlines():
                print(prefix + printable(line))
        else:
            sys.stdout.buffer.write(data)
        sys.stdout.flush()

    def progress(self, step: str, done: int = 0, total: int = 0) -> None:
        """See ``vambrace.client.progress``."""
        share = done * 100 // total if total else -1
        now = time.monotonic()
        if not self._show or (step, share) == self._last:
            return
        if step == self._last[0] and share != 100 and now - self._shown < EVERY_SECONDS:
            return
        new_step = step != self._last[0]
        self._last, self._shown = (step, share), now
        text = printable(step) + (f" {share} %" if share >= 0 else " …")
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._open_line = True
        elif new_step or share == 100:
            print(text, file=sys.stderr, flush=True)

    def end_progress(self) -> None:
        """Take the progress line away."""
        if self._open_line:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open_line = False
        self._last = ("", -1)

    def error(self, error: VambraceError) -> None:
        """One line, and one for the hint; in JSON mode the same as an object on stdout too."""
        self.end_progress()
        if self.json_mode:
            kind = type(error).__name__
            value = {"error": str(error), "kind": kind, "hint": error.hint, "exit_code": error.exit_code}
            print(json.dumps(value, indent=2), flush=True)
        print(f"error: {printable(str(error), keep_lines=True)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {printable(error.hint)}", file=sys.stderr)


def moment(seconds: float) -> str:
    """Date and time of day here; a question mark for what a stranger says and no calendar has."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"


def printable(text: str, *, keep_lines: bool = False) -> str:
    """``text`` without control characters: it may come from a host or a Realm, and go to a terminal."""
    return "".join(c if c.isprintable() or c == "\t" or (keep_lines and c == "\n") else "?" for c in text)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(number: int) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024 or unit == "MiB":
            return f"{number} {unit}"
        number //= 1024
    raise AssertionError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a file that was asked for is written. Raises ``UsageError`` where it cannot be."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="give another name") from None
