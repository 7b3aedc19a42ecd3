"""Counts what a dump of physical memory holds of pages that a program has marked.

    python3 -m testbed.census DUMP MARKER      (32 hexadecimal digits, as the program printed them)

A marked page says throughout which page it is: 128 times the marker's 16 bytes, its number and the same inverted. So a
frame with the marker is either such a page itself, whole or (on its way through the cipher) in part, or it holds a copy
of something that is elsewhere too. The pages are the zone's, and its window bounds them. A copy may be on the host, or
in the guest: its kernel may have moved a page, and programs leave traces.
"""

from __future__ import annotations

import argparse
import mmap
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from vambrace.emulator.memory import PAGE_SIZE, pages_with
from vambrace.errors import UsageError, VambraceError

MARKER_SIZE = 16
RECORD = struct.Struct("<16sQQ")
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Census:
    """``pages``: different marked pages of which at least a part is readable. ``whole``: those that are in one frame
    from end to end. ``copies``: frames with a part of a marked page that has a frame already, or that lies askew."""

    pages: int
    whole: int
    copies: int


def record(marker: bytes, page: int) -> bytes:
    """The 32 bytes of which a marked page consists."""
    return RECORD.pack(marker, page, page ^ _MASK)


def take(dump: Path, marker: bytes) -> Census:
    """Count the frames with ``marker`` (16 bytes). Raises UsageError: no such file, or another length of marker."""
    if len(marker) != MARKER_SIZE:
        raise UsageError(f"a marker has {MARKER_SIZE} bytes", hint="give what the program printed")
    frames = pages_with(dump, marker)
    whole: set[int] = set()
    parts: list[int | None] = []
    with dump.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        for frame in frames:
            contents = memory[frame * PAGE_SIZE : (frame + 1) * PAGE_SIZE]
            page = _page_of(contents, marker)
            if page is not None and page not in whole and contents == record(marker, page) * (PAGE_SIZE // RECORD.size):
                whole.add(page)
            else:
                parts.append(page)
    pages, copies = set(whole), 0
    for page in parts:
        # A page that is nowhere else is one of the zone's: the cipher is at work in its frame.
        if page is None or page in pages:
            copies += 1
        else:
            pages.add(page)
    return Census(len(pages), len(whole), copies)


def _page_of(contents: bytes, marker: bytes) -> int | None:
    """The number of the marked page, if all records in a frame are of one page and each is in its place; else None."""
    numbers = set()
    position = contents.find(marker)
    while position >= 0:
        if position % RECORD.size:
            return None
        _, page, inverted = RECORD.unpack_from(contents, position)
        if page ^ inverted != _MASK:
            return None
        numbers.add(page)
        position = contents.find(marker, position + RECORD.size)
    return numbers.pop() if len(numbers) == 1 else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m testbed.census", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dump", type=Path, metavar="DUMP", help="what 'vambrace server dump' wrote")
    parser.add_argument("marker", type=bytes.fromhex, metavar="MARKER", help="32 hexadecimal digits")
    options = parser.parse_args(arguments)
    try:
        found = take(options.dump, options.marker)
    except VambraceError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return 1
    print(f"{found.pages} pages ({found.whole} of them whole), {found.copies} copies")
    return 0


if __name__ == "__main__":
    sys.exit(main())
