"""One Realm, from 401 to 406: its VMM, its deadlines, its verdict, its agent and its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vambrace.attest import owner
from vambrace.attest.challenge import launch_challenge
from vambrace.errors import AgentFlood, CapacityError, Conflict, RealmError, UsageError, VambraceError
from vambrace.host.agent import AgentPort
from vambrace.host.auto import Auto
from vambrace.host.lifecycle import Lifecycle, State, require
from vambrace.host.messages import Messages
from vambrace.host.percent import Percentages
from vambrace.host.platform import Platform
from vambrace.host.settings import Settings
from vambrace.host.shares import Place
from vambrace.host.standby import Standby
from vambrace.host.store import RealmRecord, Store, StoredImage
from vambrace.host.vmm import AgentBytes, ConsoleBytes, Died, Ended, Event, Vmm, printable, started_at
from vambrace.realm import RealmConfig
from vambrace.trustzone import RealmClaims

REM = bytes(32)
CONSOLE_LIMIT = 256 << 10
#: Seconds after which sampling ends by itself when nobody has ended it in time.
SAMPLE_GRACE = 30
#: Seconds that an owner has to fetch what was sampled.
READ_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """``reason`` is for the record; ``logged`` is what of it may stand in the host's log."""

    state: State
    reason: str
    logged: str


class Realm:
    """Runs its stages in one task, made by ``begin``; ``finish`` from anywhere ends them.

    Every way out leads through ``destroying``: the VMM wipes and is reaped before a final state is entered.
    """

    def __init__(
        self,
        record: RealmRecord,
        config: RealmConfig,
        image: StoredImage,
        *,
        settings: Settings,
        store: Store,
        platform: Platform,
        standby: Standby,
        messages: Messages,
        cid: int,
        place: Place,
    ) -> None:
        self.record = record
        self.config = config
        self.cid = cid
        self._place = place
        self.lifecycle = Lifecycle()
        self.token: bytes | None = None
        self.deadline: float | None = None
        self.closers: set[Callable[[], None]] = set()
        self._sampling: asyncio.Task[None] | None = None
        self._advised = False  # the owner's adviser samples, or is to read what it sampled
        self._image = image
        self._settings = settings
        self._store = store
        self._platform = platform
        self._standby = standby
        self._messages = messages
        self._percentages = Percentages(config.zones, self._request)
        self._auto = Auto(config.zones, self._percentages, self._request, lambda: self._advised)
        self._spawning: asyncio.Task[Vmm] | None = None
        self._vmm: Vmm | None = None
        self._saving = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._agent = AgentPort(self, self._send_agent)
        self._console = 0
        loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Outcome] = loop.create_future()
        self._verdict: asyncio.Future[bool] = loop.create_future()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._event(State.CREATED)

    # Called by the host

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"realm {self.record.uuid}")

    def finish(self, state: State, reason: str, logged: str | None = None) -> None:
        """End the Realm in the final ``state``. The first call decides."""
        if not self._outcome.done():
            reason = printable(reason, state.value)
            self._outcome.set_result(Outcome(state, reason, reason if logged is None else logged))

    async def ended(self) -> None:
        """Return when the Realm is in a final state."""
        if self._task is not None:
            await asyncio.shield(self._task)

    @require(State.AWAITING_VERDICT)
    def accept_verdict(self, message: bytes) -> None:
        """Take the owner's verdict, once. Raises ``MessageRefused``, ``Conflict`` (no longer awaited)."""
        assert self.token is not None
        if self._verdict.done() or self._outcome.done():
            raise Conflict("a verdict was already given, or the Realm is ending", status=409)
        if self.deadline is not None and time.time() > self.deadline:
            raise Conflict("the verdict comes after its deadline", status=409)
        digest = hashlib.sha256(self.token).digest()
        yes = owner.verify_verdict(message, owner=self.config.owner, instance=self._instance, token_digest=digest)
        self._verdict.set_result(yes)

    # Called by the agent's port (section 6)

    def identity(self) -> bytes:
        return self._instance

    async def attest(self, challenge: bytes) -> bytes:
        return await self._platform.token(self._claims(challenge))

    async def encrypt(self, message: bytes) -> dict[str, Any]:
        """Begin an owner's change of a percentage, and say how far it is (``Change.as_dict``).

        The counter is on disk before anything changes: no replay, ever. Raises ``MessageRefused``, ``RealmError``,
        ``CapacityError`` (then nothing is applied, no counter used).
        """
        order = owner.verify_percent(
            message, owner=self.config.owner, instance=self._instance, last_counter=self.record.counter
        )
        self._percentages.check(order.zone)
        await self._save(counter=order.counter)
        await self._auto.release(order.zone)
        return (await self._percentages.begin(order.zone, order.percent, order.counter)).as_dict()

    def change(self, zone: int) -> dict[str, Any] | None:
        """How far the last order for a zone is, if there was one."""
        change = self._percentages.change(zone)
        return change.as_dict() if change else None

    async def auto(self, message: bytes) -> None:
        """Hold a percentage within the owner's bounds from now on, or not any more. Raises as ``encrypt``."""
        order = owner.verify_bounds(
            message, owner=self.config.owner, instance=self._instance, last_counter=self.record.counter
        )
        self._percentages.check(order.zone)
        await self._save(counter=order.counter)
        if order.bounds is None:
            await self._auto.release(order.zone)
        else:
            self._percentages.withdraw(order.zone)
            self._auto.hold(order.zone, order.bounds)

    def autos(self) -> list[dict[str, Any] | None]:
        """Of each zone: its bounds and how it is held there, or None."""
        return self._auto.states()

    async def stats(self) -> list[Any]:
        zones = (await self._request("stats")).get("zones")
        if not isinstance(zones, list):
            raise RealmError("the VMM gave no statistics")
        return zones

    async def sample(self, on: bool, seconds: int) -> None:
        """Begin or end sampling for the owner's adviser: it slows the Realm down, and tells its owner only.

        What began ends by itself a little after ``seconds``, in case nobody is there any more to end it. Raises
        ``RealmError``, also where sampling would have to wait for a change of percentage.
        """
        if on and not await self._percentages.free():
            raise RealmError("a percentage is being changed", hint="ask for advice when that has ended")
        if self._sampling:
            self._sampling.cancel()
            self._sampling = None
        if on:
            self._advised = True
            self._sampling = asyncio.create_task(self._end_sampling(seconds + SAMPLE_GRACE))
            await self._request("sample", on=True)
        elif self._percentages.busy:
            self._sampling = asyncio.create_task(self._end_sampling(0))
        else:
            self._sampling = asyncio.create_task(self._leave_samples())
            await self._request("sample", on=False)

    async def _end_sampling(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        with contextlib.suppress(VambraceError):  # the Realm has ended meanwhile
            await self._percentages.in_turn(self._stop_sampling)
        await self._leave_samples()

    async def _leave_samples(self) -> None:
        """Let zones on auto be sampled again, when the owner has had time to read."""
        await asyncio.sleep(READ_SECONDS)
        self._advised = False

    async def _stop_sampling(self) -> None:
        await self._request("sample", on=False)

    async def reuse(self) -> dict[str, Any]:
        answer = await self._request("reuse")
        if not isinstance(answer.get("zones"), list) or type(answer.get("fault_ns")) is not int:
            raise RealmError("the VMM did not say what it sampled")
        return {"zones": answer["zones"], "fault_ns": answer["fault_ns"]}

    def open_stream(self, endpoint: int, number: int) -> None:
        """Begin a stream to another Realm. Raises as ``Messages.open``."""
        self._messages.open(self, endpoint, number)

    def messages(self) -> list[dict[str, Any]]:
        return self._messages.counts(self)

    def report(self, state: str, detail: str) -> None:
        if state == "succeeded":
            self.finish(State.SUCCEEDED, detail or "all applications have succeeded", "by its agent")
        elif state == "failed":
            self.finish(State.FAILED, detail or "an application failed", "by its agent")
        elif self.record.agent != state:
            if state == "ready" and self.record.agent == "running":
                raise UsageError("the agent was ready before")
            self.record.agent = state
            self.record.events.append({"name": f"agent {state}", "step": 405, "at": time.time()})
            self._ready.set()

    # Stages

    async def _run(self) -> None:
        stages = asyncio.create_task(self._stages())
        await asyncio.wait((stages, self._outcome), return_when=asyncio.FIRST_COMPLETED)
        if stages.done() and not stages.cancelled() and (error := stages.exception()) is not None:
            if isinstance(error, VambraceError):
                self.finish(State.FAILED, error.message)
            else:
                log.error("realm %s: internal error", self.record.uuid, exc_info=error)
                self.finish(State.FAILED, "internal error of the host")
        stages.cancel()
        if self._sampling:
            self._sampling.cancel()
        await asyncio.gather(stages, return_exceptions=True)
        await self._auto.close()
        await self._percentages.close()
        outcome = await self._outcome
        self.record.reason = outcome.reason
        log.info("realm %s: ends: %s", self.record.uuid, outcome.logged)
        await self._leave(State.DESTROYING)
        self._messages.leave(self)
        for close in tuple(self.closers):
            close()
        # A VMM that was being spawned when the end came is waited for, then ended like any other.
        with contextlib.suppress(RealmError):
            if self._spawning is not None:
                await (await self._spawning).destroy()
        self.record.vmm_pid = self.record.vmm_started = 0
        await self._place.leave()
        await self._leave(outcome.state)

    async def _stages(self) -> None:
        await self._save()
        await self._create_and_load()
        if not await self._await_verdict():
            return
        await self._start()
        agent = asyncio.create_task(self._agent.serve())
        try:
            ready = asyncio.create_task(self._await_ready())
            await asyncio.gather(agent, ready)
        finally:
            agent.cancel()
            ready.cancel()

    async def _create_and_load(self) -> None:
        keys = await self._platform.fresh_keys()
        self.record.instance = keys.instance.hex()
        self._spawning = asyncio.create_task(self._standby.take(self._on_event))
        self._vmm = await asyncio.shield(self._spawning)
        await self._place.enter(self._vmm.pid)
        self.record.vmm_pid = self._vmm.pid
        self.record.vmm_started = started_at(self._vmm.pid)
        await self._move(State.LOADING)
        answer = await self._request(
            "load",
            config=str(self._image.config),
            kernel=str(self._image.kernel),
            initrd=str(self._image.initrd),
            disks=[str(disk) for disk in self._image.disks],
            instance=keys.instance.hex(),
            share=keys.share.hex(),
            cid=self.cid,
            cpus=self._place.cpus,
        )
        if answer.get("config") != hashlib.sha256(self.config.encode()).hexdigest():
            # The claims are of this configuration, the measurement of the one that the VMM has read.
            raise RealmError("the stored image changed", hint="delete it from the host, and send it again")
        try:
            measurement = bytes.fromhex(answer["measurement"])
        except (KeyError, TypeError, ValueError):
            raise RealmError("the VMM gave no measurement") from None
        self.record.measurement = measurement.hex()
        challenge = launch_challenge(bytes.fromhex(self.record.nonce), self._instance)
        self.token = await self._platform.token(self._claims(challenge))

    async def _await_verdict(self) -> bool:
        """Whether the owner said yes in time; otherwise the outcome is set."""
        self.deadline = time.time() + self.config.verdict_seconds
        await self._move(State.AWAITING_VERDICT)
        self._standby.prepare()  # the owner reads the token now
        try:
            async with asyncio.timeout(self.config.verdict_seconds):
                yes = await self._verdict
        except TimeoutError:
            self.finish(State.REFUSED, f"no verdict within {self.config.verdict_seconds} s")
            return False
        if not yes:
            self.finish(State.REFUSED, "the owner's verdict is no")
        return yes

    async def _start(self) -> None:
        self.record.executed = True
        await self._move(State.ENCRYPTING)
        await self._request("start")
        await self._move(State.RUNNING)

    async def _await_ready(self) -> None:
        try:
            async with asyncio.timeout(self._settings.agent_seconds):
                await self._ready.wait()
        except TimeoutError:
            raise RealmError(f"the agent was not ready within {self._settings.agent_seconds} s") from None
        try:
            await self._save()
        except CapacityError as error:
            # Nothing depends on it: a Realm that runs goes on.
            log.error("realm %s: %s", self.record.uuid, error.message)

    # The VMM

    def _on_event(self, event: Event) -> None:
        match event:
            case AgentBytes(data):
                try:
                    self._agent.receive(data)
                except AgentFlood as error:
                    self.finish(State.FAILED, error.message)
            case ConsoleBytes(data):
                self._log_console(data)
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
            raise RealmError("there is no VMM")
        return await self._vmm.request(op, self._settings.vmm_seconds, **arguments)

    async def _send_agent(self, data: bytes) -> None:
        if self._vmm is not None:
            await self._vmm.send_agent(data, self._settings.vmm_seconds)

    def _log_console(self, data: bytes) -> None:
        """The console of a debug Realm (measured, and allowed by the settings), up to a bound."""
        if not self.config.debug or self._console > CONSOLE_LIMIT:
            return
        self._console += len(data)
        for line in data.decode(errors="replace").splitlines():
            log.info("realm %s console: %s", self.record.uuid, printable(line, ""))

    # State

    @property
    def _instance(self) -> bytes:
        return bytes.fromhex(self.record.instance)

    def _claims(self, challenge: bytes) -> RealmClaims:
        return RealmClaims(
            instance=self._instance,
            rim=bytes.fromhex(self.record.measurement),
            rems=(REM, REM, REM, REM),
            personalization=self.config.personalization(),
            challenge=challenge,
            hash_algorithm=self.config.hash,
            debug=self.config.debug,
            key_storage="dram",
            cache_partition="none",
        )

    async def _move(self, state: State) -> None:
        """Record ``state`` on the disk, then enter it: nobody sees a state that a power cut would undo."""
        self.record.state = state.value
        self._event(state)
        await self._save()
        self.lifecycle.move(state)
        log.info("realm %s: %d %s", self.record.uuid, state.step, state.value)

    async def _leave(self, state: State) -> None:
        """As ``_move``, but a full or broken disk does not keep a Realm from being destroyed."""
        try:
            await self._move(state)
        except CapacityError as error:
            log.error("realm %s: %s", self.record.uuid, error.message)
            self.lifecycle.move(state)

    def _event(self, state: State) -> None:
        self.record.events.append({"name": state.value, "step": state.step, "at": time.time()})

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
