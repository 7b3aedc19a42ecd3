"""The known policies, told only what a pager hears.

A page that is mapped is used without a sound. To learn whether it still is, a pager has to take it out of the guest
and wait: a standby, as core/zone.h has it. So each policy gets one here: of its queues where it matters, the pages
that would go next are set aside. One that is touched costs a minor fault, of which the policy is told as of a
reference; of all other references to resident pages it never hears. How many pages are aside is a share of the window:
the more, the more it is told, and the more minor faults that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from bench.policy.policies import ONLINE, RIVALS, Policy

#: Of the window, the part that is on standby. With 0 a policy hears of its misses only.
SHARES = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Standby has its size again after so large a part of it was used up.
_STEP = 8


@dataclass(frozen=True)
class Heard:
    """What a trace cost: numbers of faults."""

    policy: str
    share: float
    misses: int
    minor: int


class Observed:
    """A policy behind a standby."""

    def __init__(self, policy: Policy, share: float) -> None:
        """``share``: of the capacity, less than 1."""
        self._policy = policy
        self._target = int(policy.capacity * share)
        self._aside: set[int] = set()
        self._until_refill = 0
        self.misses = self.minor = 0

    def touch(self, page: int) -> None:
        """The next reference; what it cost is counted."""
        if page not in self._policy:
            self.misses += 1
        elif page in self._aside:
            self.minor += 1
        else:
            return
        self._policy.touch(page)
        self._aside.discard(page)
        self._until_refill -= 1
        if self._until_refill < 0:
            self._refill()
            self._aside.discard(page)  # who waits for it must be able to use it

    def _refill(self) -> None:
        """From each queue alike, by its length."""
        self._until_refill = self._target // _STEP
        queues = self._policy.asks()
        total = sum(map(len, queues))
        if total and self._target:
            self._aside = {page for queue in queues for page in islice(queue, self._target * len(queue) // total)}


def observe(
    name: str, make: Callable[[int], Policy], capacity: int, share: float, references: Sequence[int], most_minor: int
) -> Heard | None:
    """None: there were more than ``most_minor`` minor faults."""
    observed = Observed(make(capacity), share)
    for page in references:
        observed.touch(page)
        if observed.minor > most_minor:
            return None
    return Heard(name, share, observed.misses, observed.minor)


def best(
    capacity: int,
    references: Sequence[int],
    most_minor: int,
    policies: Mapping[str, Callable[[int], Policy]] | None = None,
) -> Heard:
    """Of ``policies`` (RIVALS) and all SHARES with at most so many minor faults, the one with the fewest misses."""
    chosen = policies or {name: ONLINE[name] for name in RIVALS}
    found = []
    for name, make in chosen.items():
        tried = (observe(name, make, capacity, share, references, most_minor) for share in SHARES)
        found += [heard for heard in tried if heard]
    return min(found, key=lambda heard: (heard.misses, heard.minor))
