"""The percentages of one Realm's zones: changed one after the other, and how far the owner's orders are.

The VMM changes one zone at a time, and a raise may take minutes. So no reply waits for a change to end: an order is
begun, and whoever wants to know asks how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from vambrace.config import Zone
from vambrace.counts import is_count
from vambrace.errors import DomainError, MessageRefused, VambraceError

#: Seconds between two looks at a change in the VMM.
POLL_SECONDS = 0.2
#: Seconds that a reply waits for a change to be done: most are.
AT_ONCE_SECONDS = 1.0
#: Most pages of a change that a VMM may tell.
MOST_PAGES = (1 << 40) - 1

log = logging.getLogger(__name__)


class Request(Protocol):
    """A request to the VMM, and its reply. Raises ``DomainError``."""

    def __call__(self, op: str, **arguments: Any) -> Awaitable[dict[str, Any]]: ...


class Stage(StrEnum):
    WAITING = "waiting"  # for another change to end
    RUNNING = "running"
    DONE = "done"  # the invariant holds
    FAILED = "failed"  # the zone's percentage is what it was


@dataclass
class Change:
    """One order of the owner's. ``working`` is the zone that is being changed for it, perhaps the system's, with
    ``left`` of ``total`` pages still to be encrypted."""

    zone: int
    percent: int
    counter: int
    stage: Stage = Stage.WAITING
    working: int = 0
    left: int = 0
    total: int = 0
    error: str = ""
    hint: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the agent."""
        return {
            "zone": self.zone,
            "percent": self.percent,
            "counter": self.counter,
            "state": self.stage.value,
            "working": self.working,
            "left": self.left,
            "total": self.total,
            "error": self.error,
            "hint": self.hint,
        }

    def fail(self, error: str, hint: str | None) -> None:
        self.error, self.hint = error, hint or ""
        self.end(Stage.FAILED)

    def end(self, stage: Stage) -> None:
        self.stage, self.left = stage, 0
        self.ended.set()

    def note(self, zone: int, left: int, total: int) -> None:
        self.working, self.left, self.total = zone, left, total


class Percentages:
    """``request`` reaches the Realm's VMM. ``current`` is what each zone's percentage was set to last."""

    def __init__(self, zones: Sequence[Zone], request: Request) -> None:
        self.current = [zone.percent for zone in zones]
        self._follows = zones[0].follow
        self._request = request
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes: dict[int, Change] = {}  # the last order of each zone

    @property
    def busy(self) -> bool:
        """Whether a change is under way."""
        return self._turn.locked()

    async def free(self) -> bool:
        """Whether no change is under way; one that is has a moment to end. What is said holds until the next await."""
        try:
            async with asyncio.timeout(AT_ONCE_SECONDS), self._turn:
                return True
        except TimeoutError:
            return False

    def check(self, zone: int) -> None:
        """Raises ``MessageRefused``: not a zone that an owner may set."""
        if zone >= len(self.current):
            raise MessageRefused(f"there is no zone {zone}")
        if self._follows and zone == 0:
            raise MessageRefused("the system's zone follows the applications'", hint="name an application's zone")

    async def begin(self, zone: int, percent: int, counter: int) -> Change:
        """Begin an order that was checked, when its turn comes; returns when it has ended, or after a moment.

        Its errors are in the ``Change``. A newer order for the same zone takes the place of one that still waits; the
        same percentage once more joins the change that waits or is under way, so that its owner can look again.
        """
        last = self._changes.get(zone)
        if last is not None and last.percent == percent and not last.ended.is_set():
            change = last
            change.counter = counter
        else:
            self.withdraw(zone)
            change = self._changes[zone] = Change(zone, percent, counter)
            change.task = self._start(self._carry_out(change))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AT_ONCE_SECONDS):
                await change.ended.wait()
        return change

    def withdraw(self, zone: int) -> None:
        """A newer order for this zone has come, perhaps of another kind: one that still waits is not carried out."""
        last = self._changes.get(zone)
        if last is not None and last.stage is Stage.WAITING:
            last.fail("a newer order for this zone came before its turn", None)
            assert last.task is not None
            last.task.cancel()

    async def set(self, zone: int, choose: Callable[[], int | None]) -> None:
        """When the turn comes, ``choose`` a zone's percentage and change it, and the system's with it.

        Returns when the invariant holds, or when nothing was chosen (None). Raises ``DomainError``.
        """

        async def work() -> None:
            if (percent := choose()) is not None:
                await self._change(Change(zone, percent, 0))

        await self.undisturbed(work)

    async def undisturbed(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` while no change is under way. It goes on if whoever waits is cancelled: none ends half-way."""
        await asyncio.shield(self._start(self.in_turn(work)))

    async def in_turn(self, work: Callable[[], Awaitable[None]]) -> None:
        """The same, but it ends if whoever waits is cancelled."""
        async with self._turn:
            await work()

    def change(self, zone: int) -> Change | None:
        """The last order for a zone, and how far it is."""
        return self._changes.get(zone)

    async def close(self) -> None:
        """Forget what is under way. The VMM ends it when it ends."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waited has it, or waits no longer

    async def _carry_out(self, change: Change) -> None:
        async with self._turn:
            change.stage, change.working = Stage.RUNNING, change.zone
            try:
                await self._change(change)
            except VambraceError as error:
                change.fail(error.message, error.hint)
            except Exception:
                log.exception("a change of percentage: internal error")
                change.fail("internal error of the host", None)
            else:
                change.end(Stage.DONE)

    async def _change(self, change: Change) -> None:
        """The system's share is never below an application's: up before it, down after it."""
        wanted = list(self.current)
        wanted[change.zone] = change.percent
        if self._follows and (system := max(wanted[1:])) > self.current[0]:
            await self._set(0, system, change)
        try:
            await self._set(change.zone, change.percent, change)
        except VambraceError:
            with contextlib.suppress(VambraceError):  # the VMM is gone
                await self._lower_system(change)
            raise
        await self._lower_system(change)

    async def _lower_system(self, change: Change) -> None:
        if self._follows and (system := max(self.current[1:])) < self.current[0]:
            await self._set(0, system, change)

    async def _set(self, zone: int, percent: int, change: Change) -> None:
        change.note(zone, 0, 0)
        answer = await self._request("encrypt", zone=zone, percent=percent)
        while answer.get("done") is not True:
            change.note(zone, _count(answer, "left"), _count(answer, "total"))
            await asyncio.sleep(POLL_SECONDS)
            answer = await self._request("change")
        self.current[zone] = percent


def _count(answer: dict[str, Any], key: str) -> int:
    value = answer.get(key)
    if not is_count(value, MOST_PAGES):
        raise DomainError("the VMM does not say how far the change is")
    return value
