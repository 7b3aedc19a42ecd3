"""A user and group of its own for each VMM, shared with no process that lives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from vambrace.errors import HostError

#: Nobody's by systemd's assignment of user identities (UIDS-GIDS), and without an entry in any file of users.
FIRST: Final = 0x7000_0000
COUNT: Final = 1 << 16


class Identities:
    """One after the other, so that one is used again as late as can be."""

    def __init__(self) -> None:
        self._last = FIRST - 1

    def next(self, taken: Iterable[int]) -> int:
        """A number for user and group that is neither among ``taken`` nor any process's. Raises ``HostError``."""
        used = {*taken, *users()}
        for step in range(COUNT):
            number = FIRST + (self._last + 1 + step - FIRST) % COUNT
            if number not in used:
                self._last = number
                return number
        raise HostError("every user identity for VMMs is in use")


def users() -> Iterator[int]:
    """The real, effective, saved and file system users of all processes, as far as they are VMMs'."""
    for status_file in Path("/proc").glob("[0-9]*/status"):
        try:
            status = status_file.read_bytes()
        except OSError:  # it has ended
            continue
        line = status[status.index(b"\nUid:") :].split(b"\n", 2)[1]
        yield from (user for user in map(int, line.split()[1:]) if FIRST <= user < FIRST + COUNT)
