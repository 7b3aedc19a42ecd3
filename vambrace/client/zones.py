"""What an agent says of the zones' memory, checked: it comes from a Realm, and will be calculated with and shown."""

from __future__ import annotations

from typing import Any, TypedDict, cast

from vambrace.attest.owner import Bounds
from vambrace.client.channel import OTHER_VERSION
from vambrace.client.said import plain
from vambrace.config import Zone
from vambrace.counts import COUNT_LIMIT, is_count
from vambrace.errors import DomainError

BUCKETS_LIMIT = 64


class AutoState(TypedDict):
    """Bounds of a percentage that the host chooses (``vambrace.attest.owner.Bounds``), and how it does."""

    lowest: int
    highest: int
    slowdown: int  # thousandths of a processor's time that page faults may take
    idle: bool  # the zone was not used lately: nothing is changed
    expected: int | None  # thousandths that they should take at the present percentage, if that is known
    error: str  # why the last round came to nothing; empty if it did not


class ZoneStats(TypedDict):
    """Counts of one zone, in pages unless said: ``vambrace.pager.ZoneStats`` as the agent sends it."""

    name: str
    pages: int
    percent: int
    open: bool  # at 0 percent: the kernel maps pages, and the counts of faults stand still
    window: int  # pages that may be plaintext at this instant
    plaintext: int
    plaintext_max: int  # the most since the last change of percentage
    standby: int  # of ``plaintext``: set aside, to be encrypted next
    pinned: int
    pin_budget: int
    faults: int
    zero_faults: int
    standby_hits: int
    demotions: int
    evictions: int
    discarded: int
    bytes_encrypted: int
    bytes_decrypted: int
    busy: int
    rekeys: int
    handler_ns: int  # nanoseconds
    histogram: list[int]  # element i: faults answered in less than 2^i / 4 µs, the last one: all others
    auto: AutoState | None  # where the owner lets the host choose the percentage


#: No zone has more of these than pages.
_OF_ITS_PAGES = ("window", "plaintext", "plaintext_max", "standby", "pinned")
_OTHERS = ("name", "pages", "percent", "open", "histogram", "auto")
_COUNTS = tuple(key for key in ZoneStats.__annotations__ if key not in (*_OF_ITS_PAGES, *_OTHERS))


def check(zone: Zone, value: dict[str, Any], auto: object = None) -> ZoneStats:
    """``value`` as the statistics of ``zone``; what else is in it is left out. ``auto`` is what the agent says of its
    bounds. Raises ``DomainError``."""
    pages = zone.pages
    _number(zone, value, "pages", pages, at_least=pages)
    _number(zone, value, "percent", 100)
    for key in _OF_ITS_PAGES:
        _number(zone, value, key, pages)
    for key in _COUNTS:
        _number(zone, value, key)
    if type(value.get("open")) is not bool:
        raise _wrong(zone, "open")
    buckets = value.get("histogram")
    if not isinstance(buckets, list) or not 1 <= len(buckets) <= BUCKETS_LIMIT or not all(map(is_count, buckets)):
        raise _wrong(zone, "histogram")
    known = {key: value[key] for key in ZoneStats.__annotations__ if key not in ("name", "auto")}
    return cast("ZoneStats", {"name": zone.name, **known, "auto": check_auto(zone, auto)})


def check_auto(zone: Zone, value: object) -> AutoState | None:
    """``value`` as what is said of a zone on auto, None for one that is not. Raises ``DomainError``."""
    if value is None:
        return None
    if not isinstance(value, dict) or type(value.get("idle")) is not bool:
        raise _wrong(zone, "bounds")
    _number(zone, value, "lowest", 100, at_least=1)
    _number(zone, value, "highest", 100, at_least=value["lowest"])
    _number(zone, value, "slowdown", 999, at_least=1)
    if value.get("expected") is not None:
        _number(zone, value, "expected", 1000)
    known = {key: value.get(key) for key in AutoState.__annotations__}
    return cast("AutoState", {**known, "error": plain(value.get("error", ""))})


def bounds_of(state: AutoState | None) -> Bounds | None:
    """The bounds within which a zone is held, None for one that is not."""
    return state and Bounds(state["lowest"], state["highest"], state["slowdown"])


def _number(zone: Zone, value: dict[str, Any], key: str, at_most: int = COUNT_LIMIT - 1, at_least: int = 0) -> None:
    if not is_count(value.get(key), at_most, at_least):
        raise _wrong(zone, key)


def _wrong(zone: Zone, key: str) -> DomainError:
    return DomainError(f"the Realm's statistics of {zone.name} have no possible {key}", hint=OTHER_VERSION)
