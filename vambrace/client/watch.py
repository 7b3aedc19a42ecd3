"""All domains of a host at once, again and again: what the host says of each, and what only its owner may see.

The latter comes over the attested channel of each Realm that was started from here. A Realm that does not answer is
asked again a while later; the others do not wait for it longer than once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vambrace.client.traffic import Traffic
from vambrace.client.usage import Usage
from vambrace.client.zones import ZoneStats
from vambrace.errors import VambraceError

RUNNING = "running"
#: Rounds that a Realm which did not answer is left alone.
PAUSE = 10


class Watchable(Protocol):
    """An attached Realm."""

    def stats(self) -> list[ZoneStats]: ...
    def messages(self) -> list[Traffic]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Inside:
    """Of all zones of a Realm together, in pages: what may be plaintext, what is, the most that was. A second since the
    last look, None at the first: page faults, and bytes of messages."""

    allowed: int
    plaintext: int
    most: int
    faults: float | None
    message_bytes: float | None


@dataclass(frozen=True)
class Row:
    """One domain; ``inside`` is None where this user is not its owner, or it does not run."""

    usage: Usage
    inside: Inside | None


class Watch:
    """A context manager. ``usages`` asks the host; ``attach`` opens a Realm of ``own`` identifiers."""

    def __init__(
        self,
        usages: Callable[[], Sequence[Usage]],
        own: Callable[[], Iterable[str]],
        attach: Callable[[str], Watchable],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._usages = usages
        self._own = own
        self._attach = attach
        self._clock = clock
        self._realms: dict[str, Watchable] = {}
        self._before: dict[str, tuple[float, int, int]] = {}
        self._paused: dict[str, int] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for uuid in tuple(self._realms):
            self._drop(uuid)

    def look(self) -> list[Row]:
        """Every domain now. Raises ``VambraceError`` where the host does not answer."""
        usages = self._usages()
        mine = set(self._own())
        for uuid in self._realms.keys() - {usage.uuid for usage in usages}:
            self._drop(uuid)
        return [Row(usage, self._inside(usage) if usage.uuid in mine else None) for usage in usages]

    def _inside(self, usage: Usage) -> Inside | None:
        if usage.state != RUNNING:
            return None
        if self._paused.get(usage.uuid, 0) > 0:
            self._paused[usage.uuid] -= 1
            return None
        try:
            if usage.uuid not in self._realms:
                self._realms[usage.uuid] = self._attach(usage.uuid)
            realm = self._realms[usage.uuid]
            return self._rates(usage.uuid, realm.stats(), realm.messages())
        except VambraceError:
            self._drop(usage.uuid)
            self._paused[usage.uuid] = PAUSE
            return None

    def _rates(self, uuid: str, zones: list[ZoneStats], traffic: list[Traffic]) -> Inside:
        now = self._clock()
        faults = sum(zone["faults"] for zone in zones)
        exchanged = sum(row["sent"] + row["received"] for row in traffic)
        rates: tuple[float | None, float | None] = (None, None)
        if before := self._before.get(uuid):
            since = max(now - before[0], 1e-3)
            # A Realm may say less than before: it is not to be believed, nor to be shown as less than nothing.
            rates = (max(0.0, faults - before[1]) / since, max(0.0, exchanged - before[2]) / since)
        self._before[uuid] = now, faults, exchanged
        return Inside(
            allowed=sum(zone["window"] for zone in zones),
            plaintext=sum(zone["plaintext"] for zone in zones),
            most=sum(zone["plaintext_max"] for zone in zones),
            faults=rates[0],
            message_bytes=rates[1],
        )

    def _drop(self, uuid: str) -> None:
        realm = self._realms.pop(uuid, None)
        self._before.pop(uuid, None)
        if realm is not None:
            with contextlib.suppress(VambraceError):
                realm.close()
