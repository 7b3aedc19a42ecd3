"""Keeps our requests to the monitor to a rate, so that there is room for the owner's."""

from __future__ import annotations

import threading
import time


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
