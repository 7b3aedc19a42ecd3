"""Which refusals have an entry of their own in the audit log: anybody can be refused, as often as they like."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from vambrace.serving.rates import CLIENTS, Rates

#: Of whom is refused, at once, and then each second.
BURST: Final = 60
PER_SECOND: Final = 0.2


class Refusals:
    """Counts those that have none, for the next one that has. From any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = Rates(PER_SECOND, BURST, clock=clock)
        self._unwritten: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def entry(self, who: str, reason: str) -> str | None:
        """What the entry about ``who`` is to say, None if there is to be none."""
        with self._lock:
            count = self._unwritten.pop(who, 0)
            if not self._rates.take(who):
                return reason if not count else f"({count} more refusals before it have no entry) {reason}"
            self._unwritten[who] = count + 1
            if len(self._unwritten) > CLIENTS:
                self._unwritten.popitem(last=False)
            return None
