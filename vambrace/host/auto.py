"""Holds zones' percentages where their owner wants them: as high as a slowdown allows, within bounds that were signed.

Each zone on auto is sampled for a moment now and then, as the owner's adviser does it, and its percentage is moved by
what that says. Within the bounds it is this host that chooses: what an owner can rely on is the lower one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vambrace.advice import Advice, advise
from vambrace.attest.owner import Bounds
from vambrace.config import PAGE, Zone
from vambrace.counts import is_count
from vambrace.errors import DomainError, VambraceError
from vambrace.host.percent import Percentages, Request

#: Seconds of sampling, which slows a Realm down, and of the pause after it.
SAMPLE_SECONDS = 2.0
PAUSE_SECONDS = 30.0
#: Seconds that an order waits for sampling to end.
RELEASE_SECONDS = 1.0
#: Most percentage points of one step. What is too slow is put right sooner than what could be safer.
UP, DOWN = 10, 20
#: So many rounds the percentage stays below one at which page faults took too long, though no sample said so.
WARY_ROUNDS = 20
#: The share of the allowed slowdown up to which a percentage is raised; it is lowered only beyond all of it.
EASE = 0.75

log = logging.getLogger(__name__)


class Regulator:
    """Chooses a percentage within ``bounds``, round by round. It does not swing: small steps, a band in which nothing
    changes, and up only as far as two rounds in a row agree."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._room: int | None = None  # how high the round before would have gone
        self._ceiling, self._wary = bounds.highest, 0  # for so many rounds more

    def within(self, percent: int) -> int:
        """The percentage within the bounds that is nearest."""
        return min(max(percent, self._bounds.lowest), self._bounds.highest)

    def forget(self) -> None:
        """After a round that tells nothing: the next one is not compared with those before."""
        self._room = None

    def next(self, found: Advice, spent: float = 0.0) -> int:
        """The percentage to go to. ``spent`` is the share of time that went into page faults meanwhile: what returns
        more seldom than a round lasts is in no sample, and yet has its faults."""
        allowed = self._bounds.slowdown / 1000
        now = self.within(found.percent)
        before, self._room = self._room, None
        self._wary -= 1
        if found.share(now) > allowed:
            return max(self.within(found.highest(allowed)), now - DOWN)
        if spent > allowed:
            self._ceiling, self._wary = max(now - 1, self._bounds.lowest), WARY_ROUNDS
            return self.within(now - DOWN)
        if spent > allowed * EASE:
            return now
        self._room = self.within(found.highest(allowed * EASE))
        if self._wary > 0:
            self._room = min(self._room, self._ceiling)
        agreed = now if before is None else min(before, self._room)
        return max(now, min(agreed, now + UP))


@dataclass
class Held:
    """A zone on auto. ``idle_at`` is its count of faults when it was found idle, None while it is in use; ``expected``
    how many thousandths of the time its faults should take at the present percentage, if that is known."""

    bounds: Bounds
    task: asyncio.Task[None] | None = None
    idle_at: int | None = None
    expected: int | None = None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the agent."""
        return {
            "lowest": self.bounds.lowest,
            "highest": self.bounds.highest,
            "slowdown": self.bounds.slowdown,
            "idle": self.idle_at is not None,
            "expected": self.expected,
            "error": self.error,
        }


class Auto:
    """The loops of one Realm. ``request`` reaches its VMM; while ``advised`` its owner samples it, and nobody else."""

    def __init__(
        self, zones: Sequence[Zone], percentages: Percentages, request: Request, advised: Callable[[], bool]
    ) -> None:
        self._zones = zones
        self._percentages = percentages
        self._request = request
        self._advised = advised
        self._held: dict[int, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def hold(self, zone: int, bounds: Bounds) -> None:
        """Hold a zone's percentage within ``bounds`` from now on, instead of others that it had."""
        before = self._drop(zone)
        held = self._held[zone] = Held(bounds)
        held.task = asyncio.create_task(self._loop(zone, held, before))
        self._tasks.add(held.task)
        held.task.add_done_callback(self._tasks.discard)

    async def release(self, zone: int) -> None:
        """Leave the zone's percentage as it is. Waits a moment for sampling to end."""
        if (task := self._drop(zone)) is not None:
            await asyncio.wait((task,), timeout=RELEASE_SECONDS)

    def _drop(self, zone: int) -> asyncio.Task[None] | None:
        """Returns the loop, which was told to end, if there was one."""
        held = self._held.pop(zone, None)
        if held is None or held.task is None:
            return None
        held.task.cancel()
        return held.task

    def states(self) -> list[dict[str, Any] | None]:
        """Of each zone, for the agent: None where the percentage is the owner's."""
        held = (self._held.get(zone) for zone in range(len(self._zones)))
        return [one.as_dict() if one else None for one in held]

    async def close(self) -> None:
        """The Realm ends."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _loop(self, zone: int, held: Held, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        regulator = Regulator(held.bounds)
        while True:
            try:
                await self._go_to(zone, held, regulator.within)
                await self._round(zone, held, regulator)
                held.error = ""
            except VambraceError as error:
                # The percentage stays as it is, and the owner sees why; the next round may do better.
                held.error, held.expected = error.message, None
            except Exception:
                log.exception("a percentage on auto: internal error")
                held.error, held.expected = "internal error of the host", None
            await asyncio.sleep(PAUSE_SECONDS)

    async def _round(self, zone: int, held: Held, regulator: Regulator) -> None:
        # An idle zone is left alone until it has faults. It will have some as soon as it is used again: sampling has
        # set pages aside, a few of everywhere.
        if held.idle_at is not None and held.idle_at == await self._count(zone, "faults"):
            return
        found, spent = await self._sampled(zone)
        if not found.tells and spent * 1000 <= held.bounds.slowdown:
            held.idle_at, held.expected = await self._count(zone, "faults"), None
            regulator.forget()
            return
        held.idle_at = None
        wanted = regulator.next(found, spent)
        held.expected = round(max(found.share(found.percent), spent) * 1000)
        await self._go_to(zone, held, lambda now: wanted)
        if wanted != found.percent or spent * 1000 <= held.bounds.slowdown:
            held.expected = round(found.share(wanted) * 1000)

    async def _go_to(self, zone: int, held: Held, wanted: Callable[[int], int]) -> None:
        """To what is wanted from where the zone is when its turn comes: what runs before may leave the bounds, and the
        owner may have ordered otherwise."""

        def choose() -> int | None:
            now = self._percentages.current[zone]
            percent = wanted(now)
            return percent if percent != now and self._held.get(zone) is held else None

        await self._percentages.set(zone, choose)

    async def _sampled(self, zone: int) -> tuple[Advice, float]:
        """What a moment of sampling says of the zone, and the share of this moment that its page faults took.

        Raises DomainError, also where its owner samples it meanwhile.
        """
        self._check_alone()
        began = False
        decrypted, started = await self._count(zone, "bytes_decrypted"), time.monotonic()

        async def begin() -> None:
            nonlocal began
            if not self._advised():
                began = True
                await self._request("sample", on=True, zones=[zone])

        async def end() -> None:
            if began and not self._advised():
                await self._request("sample", on=False, zones=[zone])

        try:
            await self._percentages.undisturbed(begin)
            if began:
                await asyncio.sleep(SAMPLE_SECONDS)
        finally:
            # Also where this loop ends: after what was begun, even if that still waits for its turn.
            if not self._closed:
                with contextlib.suppress(VambraceError):
                    await self._percentages.undisturbed(end)
        self._check_alone()
        if not began:
            raise DomainError("its owner's adviser came first")
        pages = (await self._count(zone, "bytes_decrypted") - decrypted) / PAGE
        seconds = time.monotonic() - started
        answer = await self._request("reuse")
        stats = {"percent": self._percentages.current[zone], "pages": self._zones[zone].pages}
        found = advise(self._zones[zone].name, stats, self._of(answer, zone), answer.get("fault_ns"))
        return found, min(1.0, pages * found.fault / seconds)

    def _check_alone(self) -> None:
        if self._advised():
            # The agent need not be the owner's: who is held up for long should see why.
            raise DomainError("it is being sampled for its owner's adviser")

    async def _count(self, zone: int, name: str) -> int:
        count = self._of(await self._request("stats"), zone).get(name)
        if not is_count(count):
            raise DomainError("the VMM's statistics are not understood")
        return count

    def _of(self, answer: dict[str, Any], zone: int) -> dict[str, Any]:
        zones = answer.get("zones")
        if not isinstance(zones, list) or len(zones) != len(self._zones) or not isinstance(zones[zone], dict):
            raise DomainError("the VMM speaks of other zones than there are")
        found: dict[str, Any] = zones[zone]
        return found
