"""A Normal VM: somebody's system as it is, with disks of its own to write to, and a console for the operator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from vambrace.errors import DomainError
from vambrace.host.domain import Admitted, Domain, Services
from vambrace.host.lifecycle import State
from vambrace.host.vmm import Died, Ended, Event

#: A guest that resets itself again and again starts no more often than this.
RESTART_SECONDS = 5.0


class NormalVm(Domain):
    """Switching itself off ends it as ``stopped``; a reset starts it anew, in a fresh VMM, with its disks as they are.

    Its disks go with it: what must last, it sends elsewhere.
    """

    def __init__(self, admitted: Admitted, services: Services) -> None:
        super().__init__(admitted, services)
        self._reset = asyncio.Event()
        self._copying: asyncio.Task[None] | None = None

    async def _stages(self) -> None:
        self._copying = asyncio.create_task(asyncio.to_thread(self._make_disks))
        await asyncio.shield(self._copying)
        await self._spawn()
        await self._move(State.LOADING)
        await self._load()
        await self._start()
        while True:
            started = time.monotonic()
            await self._reset.wait()
            await asyncio.sleep(max(0.0, started + RESTART_SECONDS - time.monotonic()))
            await self._restart()

    def _make_disks(self) -> None:
        for disk, source in zip(self.config.disks, self._image.disks, strict=True):
            self._store.volumes.create(self.record.uuid, disk.name, source, disk.size)

    async def _restart(self) -> None:
        assert self._vmm is not None
        # Also where the domain is to end meanwhile: two VMMs never have its disks.
        await asyncio.shield(asyncio.create_task(self._vmm.destroy()))
        await self._spawn()
        await self._load()
        # From here on it is the new one that resets itself, perhaps before it is known that it runs.
        self._reset.clear()
        await self._request("start")
        self._note("restarted", State.RUNNING.step)
        await self._save()

    def _disks(self) -> Mapping[str, Path]:
        return {disk.name: self._store.volumes.path(self.record.uuid, disk.name) for disk in self.config.disks}

    async def _clear(self) -> None:
        await super()._clear()
        if self._copying is not None:
            # A thread cannot be cancelled, and what it writes later would stay.
            self._store.volumes.stop(self.record.uuid)
            await asyncio.wait([self._copying])
        await asyncio.to_thread(self._store.volumes.release, self.record.uuid)

    def _on_event(self, event: Event) -> None:
        match event:
            case Ended("poweroff"):
                self.finish(State.STOPPED, "powered off")
            case Ended("reset"):
                self._reset.set()
            case Died() if self._reset.is_set():
                """The one that was reset: its successor's load fails if that dies."""
            case _:
                super()._on_event(event)

    async def type(self, data: bytes) -> None:
        """Keys for its console. Raises ``DomainError``."""
        if self.lifecycle.state is not State.RUNNING:
            raise DomainError("the domain does not run")
        await super().type(data)
