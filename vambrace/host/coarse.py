"""Counts that an operator may see, without what their single steps would tell."""

from __future__ import annotations

import secrets

REFRESH_SECONDS = 60.0


class Coarse:
    """A count that is published in multiples of ``grain`` only; the exact one never leaves.

    Where within a grain the next step comes is random, and drawn anew for each. Were it at the multiples, an operator
    with a Realm of their own, whose faults they know, could bring the sum just below one and wait for a single fault.
    """

    def __init__(self, grain: int) -> None:
        self._grain = grain
        self._exact = 0
        self._steps = 0
        self._next = self._place()

    @property
    def published(self) -> int:
        return self._steps * self._grain

    def add(self, count: int) -> None:
        self._exact += count
        whole = self._exact // self._grain
        if whole > self._steps:
            self._steps, self._next = whole, self._place()
        if self._exact >= self._steps * self._grain + self._next:
            self._steps, self._next = self._steps + 1, self._place()

    def _place(self) -> int:
        return 1 + secrets.randbelow(self._grain)
