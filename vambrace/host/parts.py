"""Each domain's part of the last-level cache: given, enforced, looked at, and taken back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from vambrace.cache import CacheShare
from vambrace.errors import CapacityError, PartitionError
from vambrace.host.caches import Division, undivided
from vambrace.host.placing import Placing, watch
from vambrace.host.settings import COLOURS, WAYS
from vambrace.partition import CachePartition, placement, processors
from vambrace.partition.ledger import Ledger, Request, Share
from vambrace.partition.memory import memory_available
from vambrace.partition.pagemap import PAGE

#: In the account, what the host keeps of the cache is a share like any other.
HOST, HOST_LABEL = "host", "the host"
#: What is left free of the machine's memory while a domain looks for its page frames.
RESERVE = 64 << 20

log = logging.getLogger(__name__)


@dataclass
class Part:
    """One domain's. Its guest has ``guest`` bytes, whose frames must be of ``colours``; ``ways`` are those of the cache
    that it alone fills. Both are empty where it has no part. Where it is ``demanded``, ``lost`` hears in any thread why
    it is not the domain's own any more: such a domain must not go on."""

    domain: str
    label: str
    memory: int
    guest: int
    colours: tuple[int, ...] = ()
    ways: tuple[int, ...] = ()
    window: placement.Memory | None = None  # where its pages are, when they have their frames
    misplaced: str = ""  # what was found wrong with them, or with its ways
    demanded: bool = False
    lost: Callable[[str], object] = lambda why: None


class Parts:
    """Of one host. ``limit`` sets how much memory a domain's processes may have. Methods that are not async block."""

    def __init__(self, ledger: Ledger, limit: Callable[[str, int], None]) -> None:
        self.division = undivided("the host has not started yet")
        self._ledger = ledger
        self._limit = limit
        self._parts: dict[str, Part] = {}
        self._placing = asyncio.Lock()
        self._resctrl = threading.Lock()  # of what writes there, one at a time

    def divide(self, division: Division, reserve: int) -> None:
        """From now on domains have parts by ``division``, and the host ``reserve`` percent; what an earlier daemon gave
        is free again. Raises ``PartitionError``."""
        if division.ways is not None:
            for domain in division.ways.held:
                division.ways.release(domain)
        self.division = division
        if (kind := division.kind) is None:
            return
        self._ledger.add(kind)
        self._ledger.reserve(HOST, HOST_LABEL, Request(named={kind.name: division.reserved(reserve)}))
        log.info("the cache is divided in %d %s: %s", len(kind.items), kind.name, division.state.value)

    # Given and taken back

    def needs(self, label: str, guest: int, cache: CacheShare | None) -> list[dict[str, int]]:
        """What a domain with ``guest`` bytes is to have of the cache, by kind: what it asks for, then what it does with
        if that is not free. With colours everybody has some, because others have theirs.

        Raises ``CapacityError``: it demands a part, and there are none.
        """
        kind, demanded = self.division.kind, cache is not None and cache.required
        if kind is None:
            if demanded:
                raise CapacityError(
                    f"{label} demands a part of the cache for itself: {self.division.why}",
                    hint="use a host that divides its cache, or build the image with 'preferred'",
                )
            return [{}]
        least = self.division.least(guest // PAGE, self._ledger.memory // PAGE)
        asked = max(least, self.division.part(cache.percent)) if cache else least
        return [{kind.name: count} for count in ((asked,) if demanded or asked == least else (asked, least))]

    def create(self, share: Share, guest: int, *, demanded: bool = False) -> Part:
        """The part that the ledger gave to a domain. Raises ``CapacityError``, ``PartitionError``."""
        colours, ways = _numbers(share, COLOURS), _numbers(share, WAYS)
        part = Part(share.domain, share.label, share.memory, guest, colours, ways, demanded=demanded)
        self._parts[part.domain] = part
        if part.ways and self.division.ways is not None:
            with self._resctrl:
                self.division.ways.assign(part.domain, part.ways)
        return part

    def enter(self, domain: str, pid: int) -> None:
        """All threads of a VMM, and what they make, fill the domain's ways only. Raises ``PartitionError``."""
        if self._parts[domain].ways and self.division.ways is not None:
            with self._resctrl:
                self.division.ways.add(domain, processors.threads(pid))

    def leave(self, domain: str) -> None:
        """Nothing of the domain runs any more. Raises ``PartitionError``: the kernel does not take its ways back."""
        part = self._parts.get(domain)
        if part is not None and part.ways and self.division.ways is not None:
            with self._resctrl:
                self.division.ways.release(domain)
        self._parts.pop(domain, None)

    # Page frames of a domain's own colours

    @contextlib.asynccontextmanager
    async def placing(self, part: Part, pid: int) -> AsyncIterator[Placing | None]:
        """For the time in which a VMM makes its window: what chooses its page frames, or None where it has no colours.

        One domain at a time: two that look for frames would take them from each other. Raises ``PartitionError``.
        """
        if not part.colours or self.division.colours is None:
            yield None
            return
        async with self._placing:
            part.window, part.misplaced = None, ""  # a domain that starts anew has other frames
            most = self._most(part)
            await asyncio.to_thread(self._limit, part.domain, part.memory - part.guest + most * PAGE)
            placing = Placing(pid, self.division.colours, part.colours, part.guest // PAGE, most)
            try:
                yield placing
            finally:
                await placing.close()
                # The pages that were looked at in vain are given back: by the VMM, or with it.
                await asyncio.to_thread(self._limit, part.domain, part.memory)

    def _most(self, part: Part) -> int:
        """So many pages can be looked at: what nobody has, and what admitted domains do not use yet, which wait until
        this one has its frames."""
        unused = sum(other.guest for other in tuple(self._parts.values()) if other.window is None)
        spare = min(self._ledger.memory_free + unused, memory_available() - RESERVE)
        return max(spare, part.guest) // PAGE

    async def placed(self, part: Part, window: placement.Memory) -> None:
        """The domain has its frames. Raises ``PartitionError``: it has others."""
        if not window.there():
            raise PartitionError("the VMM does not say where its guest's memory is")
        part.window = window
        for finding in await asyncio.to_thread(self.look, part):
            raise PartitionError(finding)

    def look(self, part: Part) -> list[str]:
        """What is wrong with the frames or ways of a domain that has its own, a line each; the first is remembered.

        Raises ``PartitionError``: nobody can say.
        """
        found = self._look_at_ways(part) if part.ways else self._look_at_frames(part)
        part.misplaced = part.misplaced or (found[0] if found else "")
        return found

    def _examine(self, part: Part) -> list[str]:
        """As ``look``, at a domain that has its part already: one that demands it and has lost it is told."""
        found = self.look(part)
        if found and part.demanded:
            part.lost(f"the part of the cache that it demands is not its own any more: {found[0]}")
        return found

    def _look_at_ways(self, part: Part) -> list[str]:
        if self.division.ways is None:
            return []
        with self._resctrl:
            return self.division.ways.findings(part.domain)

    def _look_at_frames(self, part: Part) -> list[str]:
        window, colours = part.window, self.division.colours
        if window is None or colours is None:
            return []
        # One that has ended, and what the kernel did not take back of it, may bear the same name.
        others = [share for share in self._ledger.shares if share.domain != part.domain]
        held = {share.domain if share.label == part.label else share.label: share for share in others}
        own = {name: _numbers(share, COLOURS) for name, share in held.items()} | {part.label: part.colours}
        found = list(placement.findings({part.label: window}, colours, own))
        if part.domain not in self._parts or not window.there():
            return []  # it ends, or has ended
        return found

    async def watch(self) -> None:
        """Look at one domain after the other, for ever."""

        async def look(domain: str) -> None:
            part = self._parts.get(domain)
            known = part is None or bool(part.misplaced)
            try:
                found = await asyncio.to_thread(self._examine, part) if part is not None else []
            except PartitionError as error:
                log.error("the cache's division cannot be read: %s", error.message)
                return
            for finding in found if not known else ():
                log.error("the part of the cache of a domain is not its own any more: %s", finding)

        await watch(lambda: [domain for domain, part in tuple(self._parts.items()) if part.window or part.ways], look)

    def state(self, part: Part) -> CachePartition:
        """What can be said of a domain's part now."""
        return self.division.state if (part.colours or part.ways) and not part.misplaced else CachePartition.NONE

    # All of them

    def describe(self) -> dict[str, Any]:
        """By what the cache is divided and what is missing, and what of it is the host's, for the API."""
        own, kind = self._ledger.share(HOST), self.division.kind
        kept = list(own.of(kind.name)) if own and kind else []
        return {"partition": self.division.state.value, "reason": self.division.why, "host": kept}

    def verify(self) -> list[str]:
        """A line for everything that is not as it should be."""
        found = []
        try:
            found += [finding for part in tuple(self._parts.values()) for finding in self._examine(part)]
            if self.division.colours is not None:
                placement.check_migration()
            if self.division.ways is not None:
                with self._resctrl:
                    found += self.division.ways.findings()
        except PartitionError as error:
            found.append(error.message)
        return list(dict.fromkeys(found))  # of two who share ways each says so


def _numbers(share: Share, kind: str) -> tuple[int, ...]:
    return tuple(item for item in share.of(kind) if isinstance(item, int))
