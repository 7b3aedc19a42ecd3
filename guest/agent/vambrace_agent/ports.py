"""The ports that applications publish, and whether it is really theirs what serves there.

All applications share one loopback. One that takes the port of another that has not begun, or has crashed, must not
get what is meant for that one: the kernel says whose a listening socket is.
"""

from __future__ import annotations

from vambrace_agent.settings import Application

LISTENING = "0A"
#: Addresses that a connection to 127.0.0.1 reaches, as /proc/net/tcp and tcp6 spell them.
_REACHED = {
    *("0100007F", "00000000"),
    *("0" * 32, "0000000000000000FFFF00000100007F", "0000000000000000FFFF000000000000"),
}
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")

#: User and inode of a listening socket.
Listener = tuple[int, int]


class Ports:
    """Published ports, each with the user whose it is."""

    def __init__(self, applications: list[Application]) -> None:
        self._owners = {port: application for application in applications for port in application.ports}

    def __contains__(self, port: int) -> bool:
        return port in self._owners

    @property
    def published(self) -> list[int]:
        return sorted(self._owners)

    def served(self, port: int) -> set[Listener]:
        """Who listens there, if all of them are the application that publishes ``port``; else nobody."""
        found = listeners(port)
        return found if all(self._owners[port].owns(user) for user, _ in found) else set()


def listeners(port: int, tables: tuple[str, ...] = _TABLES) -> set[Listener]:
    """The sockets that take connections to a port of 127.0.0.1."""
    found = set()
    for path in tables:
        try:
            with open(path, encoding="ascii") as table:
                next(table)
                for line in table:
                    fields = line.split()
                    address, _, number = fields[1].partition(":")
                    if fields[3] != LISTENING:
                        break  # they come first
                    if int(number, 16) == port and address in _REACHED:
                        found.add((int(fields[7]), int(fields[9])))
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return found
