"""Who owns which part of what domains could otherwise share: memory, processors, parts of a cache, further kinds.

``ledger`` keeps account, ``processors`` knows the machine's, ``cgroups`` has the kernel enforce what was given, and
``overlap`` checks it from the numbers of the running processes, page ``frames`` among them.

Of the last-level cache, ``geometry`` reads what the machine has, ``colours`` assigns colours to domains, ``ways`` asks
resctrl for ways, ``conflict`` measures whether the colours are real, and ``placement`` chooses and checks page frames.

``devices`` knows which PCI devices domains may have, ``handover`` opens and resets them; ``cards`` makes network cards.
"""

from __future__ import annotations

from enum import Enum


class CachePartition(Enum):
    """What a token may state of a domain's share of the cache."""

    NONE = "none"
    WAYS = "ways"
    UNCONFIRMED = "colours-unconfirmed"  # placed by colour, but nothing has shown that the colours are real
    CONFIRMED = "colours-confirmed"  # the probe has shown it on this machine
