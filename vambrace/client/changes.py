"""What an agent says of how far the change of a zone's percentage is, checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vambrace.client.channel import OTHER_VERSION
from vambrace.client.progress import Progress
from vambrace.client.said import plain
from vambrace.config import DomainConfig
from vambrace.counts import is_count
from vambrace.errors import DomainError

COUNTER_LIMIT = 1 << 63
LOOK_SECONDS = 0.5
STATES = ("waiting", "running", "done", "failed")


@dataclass(frozen=True)
class Change:
    """The last order for a zone. ``state`` is waiting (for another change to end), running, done (the invariant holds)
    or failed (the percentage is what it was; ``error`` and ``hint`` say why).

    ``working`` is the zone that is being changed for it: its own, or the system's, which follows. ``left`` of ``total``
    pages of that one are still to be encrypted.
    """

    application: str
    percent: int
    counter: int
    state: str
    working: str
    left: int
    total: int
    error: str
    hint: str

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed")


def check(config: DomainConfig, zone: int, value: object) -> Change | None:
    """``value`` as the change of ``zone``, None if there was none. Raises ``DomainError``: it is none."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong("form")
    if _number(value, "zone", len(config.zones) - 1) != zone:
        raise _wrong("zone")
    working = config.zones[_number(value, "working", len(config.zones) - 1)]
    total = _number(value, "total", working.pages)
    state = value.get("state")
    if state not in STATES:
        raise _wrong("state")
    return Change(
        application=config.zones[zone].name,
        percent=_number(value, "percent", 100),
        counter=_number(value, "counter", COUNTER_LIMIT - 1),
        state=state,
        working=working.name,
        left=_number(value, "left", total),
        total=total,
        error=plain(value.get("error", "")),
        hint=plain(value.get("hint", "")),
    )


def follow(change: Change, look: Callable[[str], Change | None], progress: Progress) -> Change:
    """Wait until ``change`` is done, and return it as it is then; ``look`` gives an application's last one.

    Raises ``DomainError``: it failed, or another order came after it.
    """
    while not change.ended:
        if change.state == "waiting":
            progress("waiting for another change to end")
        else:
            progress(f"encrypting {change.working}", change.total - change.left, change.total)
        time.sleep(LOOK_SECONDS)
        now = look(change.application)
        # The same percentage, ordered once more, is the same change, with the later counter.
        if now is None or (now.counter != change.counter and now.percent != change.percent):
            raise DomainError(
                f"another order for {change.application} has come after this one", hint="see 'vambrace stats'"
            )
        change = now
    if change.state == "failed":
        raise DomainError(change.error or "the percentage could not be changed", hint=change.hint or None)
    return change


def _number(value: dict[str, Any], key: str, at_most: int) -> int:
    number = value.get(key)
    if not is_count(number, at_most):
        raise _wrong(key)
    return number


def _wrong(key: str) -> DomainError:
    return DomainError(f"what the Realm says of the change has no possible {key}", hint=OTHER_VERSION)
