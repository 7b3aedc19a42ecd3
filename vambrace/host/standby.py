"""A VMM process that has started and waits for its domain: a request for one does not wait for Python to start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from vambrace.errors import DomainError
from vambrace.host.launcher import Launcher
from vambrace.host.vmm import Event, Vmm

log = logging.getLogger(__name__)


class Standby:
    """Keeps at most one such process. It knows nothing of a domain, and serves one only.

    Like every VMM it ends when the daemon does: its control socket closes.
    """

    def __init__(self, launcher: Launcher, cpus: Sequence[int]) -> None:
        self._launcher = launcher
        self._cpus = cpus  # where it waits
        self._waiting: asyncio.Task[Vmm] | None = None
        self._closed = False

    async def take(self, on_event: Callable[[Event], None]) -> Vmm:
        """A VMM that waits, or one that is started now. Raises ``DomainError``: it cannot be started."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            with contextlib.suppress(DomainError):
                vmm = await waiting
                if vmm.adopt(on_event):
                    return vmm
                await vmm.destroy()
        return await self._spawn(on_event)

    def prepare(self) -> None:
        """Start the next one, if none waits; called when nobody waits for the processors."""
        if self._waiting is None and not self._closed:
            self._waiting = asyncio.create_task(self._spawn(_nobody))
            self._waiting.add_done_callback(_log_failure)

    async def close(self) -> None:
        """End the one that waits."""
        self._closed = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            with contextlib.suppress(DomainError):
                await (await waiting).destroy()

    async def _spawn(self, on_event: Callable[[Event], None]) -> Vmm:
        return await Vmm.spawn(self._launcher, on_event, cpus=self._cpus)


def _nobody(event: Event) -> None:
    """Without a domain there is nothing to tell; ``take`` sees whether the process lives."""


def _log_failure(task: asyncio.Task[Vmm]) -> None:
    """The next domain tries again, and says why it failed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("no VMM waits for the next domain: %s", error)
