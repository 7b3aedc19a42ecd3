"""The gallery: software that people run, unmodified, in Realms of the emulated server, with clients of its own outside.

``python -m examples.gallery [EXAMPLE …]`` (or ``make gallery``). Ends with a table, which is in build/gallery.json,
too; exit code 0 only if every example did what it is for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from examples.gallery.visit import Row, known, visit
from examples.story import Story, tell
from examples.user import User
from vambrace.emulator.server import Server

HEADINGS = (
    *("example", "form", "image s", "bundle MiB", "launch s", "start to ready s"),
    *("client", "% encrypted", "errors", "end"),
)


def play(work: Path, server: Server, story: Story) -> None:
    with story.step("server", "An ARM server", "TF-A, OP-TEE, Linux/KVM at EL2: one for all examples"):
        user = User.at(server.up(story.progress), work / "user", server.suite)
    rows = []
    for name in story.chosen or known():
        (work / name).mkdir(exist_ok=True)
        row = visit(name, server, user, work / name, story)
        rows.append(row)
        story.report["rows"] = [asdict(each) for each in rows]
        story.claim(name, row.error or f"{row.client}, {row.end}", row.error is None)
    print("\n" + "\n".join(table(rows)), flush=True)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in cells]  # fmt: skip
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        *(row.example, row.form, _seconds(row.build)),
        *("" if row.size is None else f"{row.size / (1 << 20):.0f}", _seconds(row.launch), _seconds(row.ready)),
        *(row.client or "", ", ".join(map(str, row.percentages)), str(row.errors), row.error or row.end or ""),
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    about = __doc__.splitlines()[0]
    sys.exit(tell(about, play, work="build/gallery", report="build/gallery.json", choices=known()))
