"""The ports that applications publish, and whether it is really theirs what serves there.

All applications share one loopback. One that takes the port of another that has not begun, or has crashed, must not
get what is meant for that one: the kernel says whose a listening socket is. It does so in a table of all of them, which
everybody can make longer: who makes it too long is ended, so that no look at it takes long.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection

from vambrace_agent.settings import Application

LISTENING = b"0A"
#: Bytes of a table that are read at most: of some 1700 listening sockets, of which a look takes 10 ms or so.
MAX_TABLE = 256 << 10
_CHUNK = 32 << 10
#: Addresses that a connection to 127.0.0.1 reaches, as /proc/net/tcp and tcp6 spell them.
_REACHED = {
    *(b"0100007F", b"00000000"),
    *(b"0" * 32, b"0000000000000000FFFF00000100007F", b"0000000000000000FFFF000000000000"),
}
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
#: Address, port, state, user and inode in a line of them.
_LINE = re.compile(
    rb"\d+: ([0-9A-F]+):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} ([0-9A-F]{2}) \S+ \S+ \S+ +(\d+) +\d+ (\d+) "
)

#: User and inode of a listening socket.
Listener = tuple[int, int]


class TooMany(Exception):
    """More listening sockets than are looked at; ``users`` counts whose the first of them are."""

    def __init__(self, users: Counter[int]) -> None:
        self.users = users


class Ports:
    """Published ports, each with the user whose it is. ``stop`` ends an application that has too many sockets."""

    def __init__(self, applications: list[Application], stop: Callable[[Application], None] | None = None) -> None:
        self._applications = applications
        self._owners = {port: application for application in applications for port in application.ports}
        self._stop = stop

    def __contains__(self, port: int) -> bool:
        return port in self._owners

    @property
    def published(self) -> list[int]:
        return sorted(self._owners)

    def served(self, ports: Collection[int]) -> dict[int, set[Listener]]:
        """Who listens on each of the published ``ports``, if all of them are the application that publishes it; else
        nobody. One look at the kernel's tables, however many ports there are."""
        try:
            found = listeners(ports)
        except TooMany as crowd:
            self._end_greediest(crowd.users)
            return {port: set() for port in ports}
        return {
            port: there if all(self._owners[port].owns(user) for user, _ in there) else set()
            for port, there in found.items()
        }

    def _end_greediest(self, users: Counter[int]) -> None:
        counts = [(sum(users[user] for user in users if one.owns(user)), one) for one in self._applications]
        count, greediest = max(counts, key=lambda pair: pair[0])
        if self._stop and count:
            print(f"vambrace: application {greediest.name} listens with too many sockets: it is ended", file=sys.stderr)
            self._stop(greediest)


def listeners(ports: Collection[int], tables: tuple[str, ...] = _TABLES) -> dict[int, set[Listener]]:
    """The sockets that take connections to ``ports`` of 127.0.0.1. Raises ``TooMany``."""
    found: dict[int, set[Listener]] = {port: set() for port in ports}
    wanted = {b"%04X" % port: there for port, there in found.items()}
    for path in tables:
        try:
            text = _listening(path)
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for port, there in wanted.items():
            place = -1
            while (place := text.find(b":%s " % port, place + 1)) >= 0:
                line = _LINE.search(text, text.rfind(b"\n", 0, place) + 1, place + 256)
                if line and line[2] == port and line[3] == LISTENING and line[1] in _REACHED:
                    there.add((int(line[4]), int(line[5])))
    return found


def _listening(path: str) -> bytes:
    """A table as far as it has listening sockets, which come first. Raises ``TooMany``, ``FileNotFoundError``."""
    parts: list[bytes] = []
    size = 0
    with open(path, "rb", buffering=0) as table:
        while part := table.read(_CHUNK):
            parts.append(part)
            size += len(part)
            end = part.rfind(b"\n")  # of the last line that is whole
            line = _LINE.search(part, part.rfind(b"\n", 0, max(end, 0)) + 1, max(end, 0))
            if line and line[3] != LISTENING:
                break
            if size > MAX_TABLE:
                lines = _LINE.finditer(b"".join(parts))
                raise TooMany(Counter(int(line[4]) for line in lines if line[3] == LISTENING))
    return b"".join(parts)
