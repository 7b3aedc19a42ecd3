"""What a domain asks of its host's last-level cache. Standard library only: the VMM process imports this file."""

from __future__ import annotations

from typing import Final

from vambrace.canonical import Object
from vambrace.errors import ConfigError
from vambrace.record import Record

REQUIRED, PREFERRED = DEMANDS = ("required", "preferred")
KEYS: Final = ("demand", "percent")


class CacheShare(Record):
    """At least ``percent`` of the cache for this domain alone. Where that cannot be given, it does not start if it is
    ``required``, and if it is ``preferred`` it starts without, as its token says."""

    demand: str
    percent: int

    def __post_init__(self) -> None:
        if self.demand not in DEMANDS:
            raise ConfigError(f"cache: {str(self.demand)[:40]!r} is not known", hint=f"one of {', '.join(DEMANDS)}")
        if type(self.percent) is not int or not 1 <= self.percent <= 100:
            hint = "the part of the cache, a whole number from 1 to 100"
            raise ConfigError(f"cache: percent is {str(self.percent)[:20]}", hint=hint)

    @property
    def required(self) -> bool:
        return self.demand == REQUIRED

    @classmethod
    def read(cls, item: Object) -> CacheShare:
        return cls(item.string("demand"), item.integer("percent"))
