"""The last steps of a process into its jail, over the socket that it shares with the launcher."""

from __future__ import annotations

import socket
from collections.abc import Callable

IMPORTED = b"imported"
SHUT_IN = b"shut in"
#: A filter has at most 4096 instructions of 8 bytes.
PROGRAM_LIMIT = 4096 * 8


def enter(way_in: int, restrict: Callable[[bytes], None]) -> None:
    """Everything is imported: have the root emptied, and bind this process to its system calls with ``restrict``.

    The descriptor ``way_in`` is closed.
    """
    with socket.socket(fileno=way_in) as launcher:
        launcher.send(IMPORTED)
        restrict(launcher.recv(PROGRAM_LIMIT))
        launcher.send(SHUT_IN)
