"""What a verifier accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vambrace.attest.claims import CACHE_PARTITIONS

SECURED: Final = 0x3000
NOT_PROVISIONED: Final = 0x1000
# Life cycle states of the Arm CCA platform token, by the upper byte.
LIFECYCLES: Final = {
    0x00: "unknown",
    0x10: "not provisioned (assembly and test)",
    0x20: "being provisioned",
    0x30: "secured",
    0x40: "debug of the non-CCA platform",
    0x50: "recoverable debug",
    0x60: "decommissioned",
}

# What may be demanded of the cache: that it is divided at all, or that it is certain to be.
CACHE_DEMANDS: Final = {
    "divided": frozenset(CACHE_PARTITIONS) - {"none"},
    "confirmed": frozenset({"ways", "colours-confirmed"}),
}


@dataclass(frozen=True)
class Policy:
    """The defaults are safe: only a secured platform, no debugging, nothing insecure.

    ``allow_insecure`` also accepts a platform that is not provisioned; such a platform proves nothing.
    ``cache_partitions`` are the states of the cache's partition that are accepted (``claims.CACHE_PARTITIONS``): any,
    unless it is demanded.
    """

    allow_debug: bool = False
    allow_insecure: bool = False
    lifecycles: frozenset[int] = frozenset({SECURED})
    hash_algorithm: str = "sha-256"
    cache_partitions: frozenset[str] = frozenset(CACHE_PARTITIONS)

    def accepts_lifecycle(self, lifecycle: int) -> bool:
        return lifecycle in self.lifecycles or (self.allow_insecure and lifecycle == NOT_PROVISIONED)


def lifecycle_name(lifecycle: int) -> str:
    """The state's name; the lower byte is the implementation's."""
    return LIFECYCLES.get(lifecycle >> 8, "invalid")
