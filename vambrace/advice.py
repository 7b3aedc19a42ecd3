"""What each percentage would cost an application: the miss-ratio curve of its memory, times the price of a fault.

The owner's adviser shows it, and the daemon sets percentages by it where the owner has ordered that.

Sampling (core/sample.h) tells after how many other pages a page is touched again. With a window of fewer pages than
that, the touch would have been a miss under LRU, to which the window's own policy comes near (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vambrace.counts import is_count
from vambrace.errors import DomainError

#: Counts of reuse, by the distance in percent of the zone.
DISTANCES = 101
#: No count and no time is as large.
MOST = (1 << 62) - 1
#: With fewer touches of sampled pages the curve is noise.
ENOUGH = 200
OTHER_VERSION = "image and host are perhaps of different versions of vambrace"


@dataclass(frozen=True)
class Advice:
    """Of one zone. ``misses`` are expected faults per second at each percentage from 0 to 100, ``fault`` the seconds
    that one takes, ``touches`` the touches that were sampled: with few of them the rest says little."""

    zone: str
    percent: int
    pages: int
    touches: int
    fault: float
    misses: tuple[float, ...]

    @property
    def tells(self) -> bool:
        """Whether enough was sampled: a zone that was idle tells nothing."""
        return self.touches >= ENOUGH

    def share(self, percent: int) -> float:
        """The share of a vCPU's time, 0 up to below 1, that would go into faults at ``percent``.

        The sampled time had its own faults, which are left out: ``busy`` seconds of faults for each second of work.
        """
        busy = self.misses[percent] * self.fault
        return busy / (1 + busy)

    def highest(self, slowdown: float) -> int:
        """The highest percentage that costs no more than this share of the time, for example 0.05."""
        return max(percent for percent in range(101) if self.share(percent) <= slowdown)


def advise(zone: str, stats: Mapping[str, Any], sampled: object, fault_ns: object) -> Advice:
    """What the samples of a zone say. ``stats`` were checked; ``sampled`` and ``fault_ns``, the cost of a fault, are as
    they came from a Realm or a VMM.

    Raises DomainError: they are no samples, or no cost.
    """
    counts = sampled.get("reuse") if isinstance(sampled, dict) else None
    if not isinstance(sampled, dict) or not isinstance(counts, list) or len(counts) != DISTANCES:
        raise DomainError("the samples are not understood", hint=OTHER_VERSION)
    numbers = [fault_ns, *(sampled.get(key) for key in ("shift", "ns", "touches")), *counts]
    if not all(is_count(number, MOST) for number in numbers):
        raise DomainError("the samples are not numbers", hint=OTHER_VERSION)
    fault, shift, elapsed, touches = (number for number in numbers[:4] if isinstance(number, int))
    if shift > 31 or not elapsed:
        raise DomainError("the samples are out of range", hint=OTHER_VERSION)
    seconds = elapsed / 1e9
    # At p percent the window is 100 − p percent of the zone: a reuse at a greater distance is a miss.
    misses = tuple(sum(counts[100 - p :]) * 2**shift / seconds if p else 0.0 for p in range(101))
    return Advice(zone, stats["percent"], stats["pages"], touches, fault / 1e9, misses)
