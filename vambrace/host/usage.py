"""What share of the processors each domain uses, as an operator may see it: that is the scheduler's business anyway.

Shares are of a fixed stretch of time, in steps, and worked out at a fixed pace: who asks does not choose the moment,
and what a single request within a domain costs does not show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

#: Seconds that a share is of.
INTERVAL: Final = 2.0
#: Percent of one processor.
STEP: Final = 5


class Usage:
    """``domains`` names those that there are; ``spent`` says how many microseconds of processors one has had, if that
    is known; ``clock`` gives seconds."""

    def __init__(
        self,
        domains: Callable[[], Iterable[str]],
        spent: Callable[[str], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domains = domains
        self._spent = spent
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}
        self._shares: dict[str, int] = {}

    def share(self, domain: str) -> int | None:
        """Percent of one processor in the last interval, to the nearest step; None while it is not known."""
        return self._shares.get(domain)

    async def refresh(self) -> None:
        """Work out for ever."""
        while True:
            self.sample()
            await asyncio.sleep(INTERVAL)

    def sample(self) -> None:
        """Look once; the next look gives the shares of the time between."""
        found: dict[str, tuple[float, int]] = {}
        shares: dict[str, int] = {}
        for domain in self._domains():
            now, spent = self._clock(), self._spent(domain)
            if spent is None:
                continue
            found[domain] = now, spent
            if domain in self._last:
                before, had = self._last[domain]
                percent = (spent - had) / max(now - before, 1e-3) / 10_000
                shares[domain] = max(0, round(percent / STEP) * STEP)
        self._last, self._shares = found, shares
