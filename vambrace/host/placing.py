"""A domain's page frames of its own colours: chosen while its VMM makes its window, and looked at while it runs.

The VMM cannot see frame numbers and may be hostile: it offers pages, and is told which of them to keep.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from vambrace.counts import is_count
from vambrace.errors import PartitionError, VambraceError
from vambrace.host.vmm import Choose, Vmm
from vambrace.partition import placement
from vambrace.partition.colours import Colours
from vambrace.partition.pagemap import PAGE

#: Pages that a VMM offers at a time, but for its last offers, which may be as small as there are left.
LEAST_OFFER = 1024
SMALL_OFFERS = 16
#: Beyond any address of a process.
ADDRESSES = 1 << 56
#: Seconds between two looks at one domain's frames, and how much longer a pause is than the look before it.
WATCH_SECONDS, WATCH_PAUSE = 60.0, 50

log = logging.getLogger(__name__)


class Placing:
    """Of the one domain that is being placed. ``most`` pages may be offered in all."""

    def __init__(self, pid: int, colours: Colours, own: Iterable[int], pages: int, most: int) -> None:
        self.most = most
        self._pid = pid
        self._colours = colours
        self._own = frozenset(own)
        self._pages = pages
        self._offered = self._small = 0
        self._answering: asyncio.Task[None] | None = None

    async def choose(self, address: int, pages: int) -> bytes:
        """Which of the pages at ``address`` to keep (``placement.choose``). Raises ``PartitionError``."""
        self._small += pages < LEAST_OFFER
        self._offered += max(0, pages)
        if self._offered > self.most or self._small > SMALL_OFFERS:
            raise PartitionError("the VMM offers more pages than it may")
        return await asyncio.to_thread(placement.choose, self._pid, address, pages, self._colours, self._own)

    def asked(self, question: Choose, vmm: Vmm) -> bool:
        """Begin to answer. False: the VMM did not wait for the answer before."""
        if self._answering is not None and not self._answering.done():
            return False
        self._answering = asyncio.create_task(self._answer(question, vmm))
        return True

    async def _answer(self, question: Choose, vmm: Vmm) -> None:
        try:
            answer = {"keep": base64.b64encode(await self.choose(question.address, question.pages)).decode()}
        except PartitionError as error:
            answer = {"error": error.message}
        with contextlib.suppress(VambraceError):  # it has ended, and whoever waits for its load hears of that
            await vmm.answer("keep" in answer, **answer)

    async def close(self) -> None:
        """Nothing is answered any more."""
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)

    def memory(self, guest: object, side: object) -> placement.Memory:
        """Where the VMM says that its guest's pages are. Raises ``PartitionError``: that cannot be."""
        size = self._pages * PAGE
        most = ADDRESSES - size
        if not is_count(guest, most, 1) or not is_count(side, most, 1) or guest % PAGE or side % PAGE:
            raise PartitionError("the VMM does not say where its guest's memory is")
        if abs(guest - side) < size:
            raise PartitionError("the VMM says two things of where its guest's memory is")
        return placement.Memory(self._pid, guest, side, self._pages)


async def watch(domains: Callable[[], Iterable[str]], look: Callable[[str], Awaitable[None]]) -> None:
    """Have ``look`` verify each of ``domains``, one after the other, for ever; a fiftieth of the time at most."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        for domain in tuple(domains()):
            started = time.monotonic()
            await look(domain)
            await asyncio.sleep(WATCH_PAUSE * (time.monotonic() - started))
