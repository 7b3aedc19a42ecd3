"""Keeps our requests to the monitor to a rate, so that there is room for the owner's; and ourselves from asking at once
again for what there is none of."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import Any

#: Until the next try, where there was no descriptor or memory for a connection.
RETRY_SECONDS = 0.1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Pace:
    """``rate`` turns a second, at most ``burst`` of them saved; from any thread, who came first is served first."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._turns, self._filled = burst, time.monotonic()
        self._waiting = threading.Lock()

    def wait(self) -> None:
        """Return when it is our turn."""
        with self._waiting:
            while True:
                now = time.monotonic()
                self._turns = min(self._burst, self._turns + (now - self._filled) * self._rate)
                self._filled = now
                if self._turns >= 1:
                    self._turns -= 1
                    return
                time.sleep((1 - self._turns) / self._rate)


def accept(listener: socket.socket) -> tuple[socket.socket, Any] | None:
    """A connection and whence it comes; None where there is none now.

    Who waits is still there where we lack what a connection needs, and so is whoever used that up: not for ever.
    """
    try:
        return listener.accept()
    except OSError as error:
        if error.errno in _EXHAUSTED:
            time.sleep(RETRY_SECONDS)
        return None
