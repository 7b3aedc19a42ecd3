"""Who owns which part of the last-level cache, by colours of page frames or by ways.

``geometry`` reads the machine's caches, ``colours`` assigns colours to domains, ``ways`` asks resctrl for ways,
``conflict`` measures whether the colours are real, ``frames`` reads page frame numbers and checks placements.
"""

from __future__ import annotations

from enum import Enum


class CachePartition(Enum):
    """What a token may state of a domain's share of the cache."""

    NONE = "none"
    WAYS = "ways"
    UNCONFIRMED = "colours unconfirmed"  # placed by colour, but nothing has shown that the colours are real
    CONFIRMED = "colours confirmed"  # the probe has shown it on this machine
