"""What every domain has, of whatever class: its record, its VMM, its place, its states and its end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.config import DomainConfig
from vambrace.errors import CapacityError, DomainError, VambraceError
from vambrace.host.console import Terminal
from vambrace.host.lifecycle import Lifecycle, State
from vambrace.host.messages import Messages
from vambrace.host.opened import opened
from vambrace.host.outlets import Outlets
from vambrace.host.placing import Placing
from vambrace.host.platform import Platform
from vambrace.host.settings import Settings
from vambrace.host.shares import Place
from vambrace.host.standby import Standby
from vambrace.host.store import DomainRecord, Store, StoredImage
from vambrace.host.vmm import Choose, ConsoleBytes, Died, Ended, Event, Vmm, printable, started_at
from vambrace.storage import Storage

CONSOLE_LIMIT = 256 << 10
#: Events that are no states, of one domain: its guest decides how many there are.
NOTES_KEPT = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What all domains of a host use together."""

    settings: Settings
    store: Store
    platform: Platform
    standby: Standby
    messages: Messages
    outlets: Outlets


@dataclass(frozen=True)
class Admitted:
    """What one domain was given when it was accepted."""

    record: DomainRecord
    config: DomainConfig
    image: StoredImage
    cid: int
    place: Place
    #: The launch measurement that the platform's owner has signed, where somebody asks for it.
    signed: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """``reason`` is for the record; ``logged`` is what of it may stand in the host's log."""

    state: State
    reason: str
    logged: str


class Domain(ABC):
    """Runs its stages in one task, made by ``begin``; ``finish`` from anywhere ends them.

    Every way out leads through ``destroying``: the VMM wipes and is reaped before a final state is entered.
    """

    def __init__(self, admitted: Admitted, services: Services) -> None:
        self.record = admitted.record
        self.config = admitted.config
        self.cid = admitted.cid
        self.lifecycle = Lifecycle(verdict=self.config.kind.verdict)
        self.closers: set[Callable[[], None]] = set()
        self._place = admitted.place
        self._image = admitted.image
        self._settings = services.settings
        self._store = services.store
        self._standby = services.standby
        self._spawning: asyncio.Task[Vmm] | None = None
        self._vmm: Vmm | None = None
        self._placing: Placing | None = None  # while it loads, where its page frames are chosen
        self._saving = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._console = 0
        self.terminal = Terminal(self.type) if self.config.console else None
        loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Outcome] = loop.create_future()
        self._place.when_lost(lambda why: loop.call_soon_threadsafe(self.finish, State.FAILED, why))
        self._task: asyncio.Task[None] | None = None
        self._event(State.CREATED)

    # Called by the host

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"domain {self.record.uuid}")

    def finish(self, state: State, reason: str, logged: str | None = None) -> None:
        """End the domain in the final ``state``. The first call decides."""
        if not self._outcome.done():
            reason = printable(reason, state.value)
            self._outcome.set_result(Outcome(state, reason, reason if logged is None else logged))

    async def ended(self) -> None:
        """Return when the domain is in a final state."""
        if self._task is not None:
            await asyncio.shield(self._task)

    @property
    def token(self) -> bytes | None:
        """The launch token, of what has one."""
        return None

    @property
    def deadline(self) -> float | None:
        """Until when a verdict is awaited, where one is."""
        return None

    async def stats(self) -> list[Any]:
        """Of each zone. Raises ``DomainError``."""
        zones = (await self._request("stats")).get("zones")
        if not isinstance(zones, list):
            raise DomainError("the VMM gave no statistics")
        return zones

    # Stages

    @abstractmethod
    async def _stages(self) -> None:
        """From created to running, and what is to be done then; may go on until it is cancelled."""

    async def _close(self) -> None:
        """End what goes on beside the stages; the domain is being destroyed."""
        for close in tuple(self.closers):
            close()

    async def _run(self) -> None:
        stages = asyncio.create_task(self._first_stages())
        await asyncio.wait((stages, self._outcome), return_when=asyncio.FIRST_COMPLETED)
        if stages.done() and not stages.cancelled() and (error := stages.exception()) is not None:
            if isinstance(error, VambraceError):
                self.finish(State.FAILED, error.message)
            else:
                log.error("domain %s: internal error", self.record.uuid, exc_info=error)
                self.finish(State.FAILED, "internal error of the host")
        stages.cancel()
        await asyncio.gather(stages, return_exceptions=True)
        outcome = await self._outcome
        self.record.reason = outcome.reason
        log.info("domain %s: ends: %s", self.record.uuid, outcome.logged)
        await self._leave(State.DESTROYING)
        await self._close()
        # A VMM that was being spawned when the end came is waited for, then ended like any other.
        with contextlib.suppress(DomainError):
            if self._spawning is not None:
                await (await self._spawning).destroy()
        self.record.vmm_pid = self.record.vmm_started = 0
        await self._clear()
        await self._leave(outcome.state)

    async def _clear(self) -> None:
        """Nothing of it runs any more: give back what it had."""
        await self._place.leave()
        if self.config.storage:
            # The VMM is gone, so nobody writes to them any more.
            await asyncio.to_thread(self._store.volumes.release, self.record.uuid)
            self._store.lasting.release(self.record.uuid)

    async def _first_stages(self) -> None:
        await self._save()
        if self.config.storage:
            await asyncio.to_thread(self._make_scratch, self.config.storage)
        await self._stages()

    async def _spawn(self) -> None:
        """A VMM in its place, that knows nothing of the domain yet."""
        self._spawning = asyncio.create_task(self._standby.take(self._on_event))
        self._vmm = await asyncio.shield(self._spawning)
        await self._place.enter(self._vmm.pid)
        self.record.vmm_pid = self._vmm.pid
        self.record.vmm_started = started_at(self._vmm.pid)

    async def _load(self, **arguments: Any) -> dict[str, Any]:
        """401 and 402: everything is in memory, nothing has run. The VMM's answer, about the right configuration.

        Where the domain has colours, its memory has page frames of these, and of no others. Raises ``DomainError``,
        ``PartitionError``.
        """
        async with self._place.placing(self.record.vmm_pid) as self._placing:
            if self._placing is None:
                return await self._load_image(**arguments)
            answer = await self._load_image(draw=self._placing.most, **arguments)
            await self._place.placed(self._placing.memory(answer.get("guest"), answer.get("side")))
        self._placing = None
        return answer

    async def _load_image(self, **arguments: Any) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            handed = await self._place.open_devices(stack)
            its = stack.enter_context(
                opened(
                    self._image,
                    self.config,
                    {**self._disks(), **self._stores()},
                    self._place.networks,
                    self._settings.devices,
                    handed,
                )
            )
            written = [disk.size for disk in self.config.disks if disk.plain]
            written += [store.size for store in self.config.stores]
            if self._vmm is not None and written:
                self._vmm.allow_writes(max(written))
            answer = await self._request(
                "load",
                descriptors=its.descriptors,
                cards=its.cards,
                cid=self.cid,
                cpus=self._place.cpus,
                **arguments,
            )
        if answer.get("config") != hashlib.sha256(self.config.encode()).hexdigest():
            # What was admitted, and what claims are made of, is this configuration; the VMM has read the file.
            raise DomainError("the stored image changed", hint="delete it from the host, and send it again")
        return answer

    def _disks(self) -> Mapping[str, Path]:
        """The files that are its disks, by their names."""
        return {disk.name: path for disk, path in zip(self.config.disks, self._image.disks, strict=False)}

    def _make_scratch(self, storage: Storage) -> None:
        for each, store in zip(storage.scratch, storage.stores, strict=False):
            self._store.volumes.create_empty(self.record.uuid, store.serial, each.size)

    def _stores(self) -> Mapping[str, Path]:
        """The files that its scratch space and volumes are, by their names."""
        storage = self.config.storage
        if storage is None:
            return {}
        owner = self.config.personalization().hex()
        scratch = [self._store.volumes.path(self.record.uuid, store.serial) for store in storage.stores]
        lasting = [self._store.lasting.path(owner, volume.name) for volume in storage.volumes]
        paths = [*scratch[: len(storage.scratch)], *lasting]
        return {store.name: path for store, path in zip(storage.stores, paths, strict=True)}

    async def _start(self) -> None:
        self.record.executed = True
        if self.config.kind.encrypted:
            await self._move(State.ENCRYPTING)
        await self._request("start")
        await self._move(State.RUNNING)

    # The VMM

    def _on_event(self, event: Event) -> None:
        match event:
            case Choose():
                if self._placing is None or self._vmm is None or not self._placing.asked(event, self._vmm):
                    self.finish(State.FAILED, "the VMM asks about page frames out of turn")
            case ConsoleBytes(data):
                self._printed(data)
            case Ended("poweroff"):
                self.finish(State.FAILED, "powered off")
            case Ended("reset"):
                self.finish(State.FAILED, "reset: a restart is a new instance")
            case Ended(reason, detail):
                self.finish(State.FAILED, f"{reason}: {detail}" if detail else reason)
            case Died(detail):
                self.finish(State.FAILED, detail)

    async def _request(self, op: str, **arguments: Any) -> dict[str, Any]:
        if self._vmm is None:
            raise DomainError("there is no VMM")
        return await self._vmm.request(op, self._settings.vmm_seconds, **arguments)

    async def type(self, data: bytes) -> None:
        """Keys for its console. Raises ``DomainError``."""
        await self._request("console", data=base64.b64encode(data).decode())

    def _printed(self, data: bytes) -> None:
        """To whoever looks at its console, where it has one; that of a debug domain is logged, up to a bound."""
        if self.terminal is not None:
            self.terminal.feed(data)
        if not self.config.debug or self._console > CONSOLE_LIMIT:
            return
        self._console += len(data)
        for line in data.decode(errors="replace").splitlines():
            log.info("domain %s console: %s", self.record.uuid, printable(line, ""))

    # State

    async def _move(self, state: State) -> None:
        """Record ``state`` on the disk, then enter it: nobody sees a state that a power cut would undo."""
        self.record.state = state.value
        self._event(state)
        await self._save()
        self.lifecycle.move(state)
        log.info("domain %s: %d %s", self.record.uuid, state.step, state.value)

    async def _leave(self, state: State) -> None:
        """As ``_move``, but a full or broken disk does not keep a domain from being destroyed."""
        try:
            await self._move(state)
        except CapacityError as error:
            log.error("domain %s: %s", self.record.uuid, error.message)
            self.lifecycle.move(state)

    def _event(self, state: State) -> None:
        self.record.events.append({"name": state.value, "step": state.step, "at": time.time()})

    def _note(self, name: str, step: int) -> None:
        """Remember what a guest can bring about again and again: the last few times."""
        self.record.events.append({"name": name, "step": step, "at": time.time()})
        states = {state.value for state in State}
        noted = [event for event in self.record.events if event["name"] not in states]
        for event in noted[:-NOTES_KEPT]:
            self.record.events.remove(event)

    async def _save(self, **changes: Any) -> None:
        """Write the record, with ``changes``, which are made in memory once they are on the disk.

        Raises ``CapacityError``. A thread cannot be cancelled, so a write that was begun ends before the next.
        """
        writing = asyncio.create_task(self._write(changes))
        self._writes.add(writing)
        writing.add_done_callback(self._writes.discard)
        await asyncio.shield(writing)

    async def _write(self, changes: dict[str, Any]) -> None:
        async with self._saving:
            snapshot = dataclasses.replace(self.record, events=list(self.record.events), **changes)
            await asyncio.to_thread(self._store.save, snapshot)
            for name, value in changes.items():
                setattr(self.record, name, value)
