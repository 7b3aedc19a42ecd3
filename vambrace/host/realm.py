"""A Realm, from 401 to 406: encrypted as its owner says, started by its owner's verdict, ended by its own success."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from vambrace.attest import owner
from vambrace.errors import Conflict, DomainError, UsageError, VambraceError
from vambrace.host.agent import OwnerOrders
from vambrace.host.attested import Attested
from vambrace.host.auto import Auto
from vambrace.host.domain import Admitted, Services
from vambrace.host.lifecycle import State, require
from vambrace.host.percent import Percentages
from vambrace.release import OWNER
from vambrace.trustzone import SealingClaims

#: Seconds after which sampling ends by itself when nobody has ended it in time.
SAMPLE_GRACE = 30
#: Seconds that an owner has to fetch what was sampled.
READ_SECONDS = 5.0


class Realm(Attested):
    """Adds the owner's word: the verdict, and the orders that the agent carries."""

    def __init__(self, admitted: Admitted, services: Services) -> None:
        super().__init__(admitted, services)
        self._messages = services.messages
        self._outlets = services.outlets
        self._sampling: asyncio.Task[None] | None = None
        self._advised = False  # the owner's adviser samples, or is to read what it sampled
        self._percentages = Percentages(self.config.zones, self._request)
        self._auto = Auto(self.config.zones, self._percentages, self._request, lambda: self._advised)
        self._deadline: float | None = None
        self._verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def _orders(self) -> OwnerOrders:
        return self

    @property
    def deadline(self) -> float | None:
        return self._deadline

    @require(State.AWAITING_VERDICT)
    def accept_verdict(self, message: bytes) -> None:
        """Take the owner's verdict, once. Raises ``MessageRefused``, ``Conflict`` (no longer awaited)."""
        assert self._token is not None
        if self._verdict.done() or self._outcome.done():
            raise Conflict("a verdict was already given, or the Realm is ending", status=409)
        if self._deadline is not None and time.time() > self._deadline:
            raise Conflict("the verdict comes after its deadline", status=409)
        digest = self.config.suite.digest(self._token)
        yes = owner.verify_verdict(message, owner=self.config.owner, instance=self._instance, token_digest=digest)
        self._verdict.set_result(yes)

    # The owner's orders, by the agent (section 6)

    async def encrypt(self, message: bytes) -> dict[str, Any]:
        """Begin an owner's change of a percentage, and say how far it is (``Change.as_dict``).

        The counter is on disk before anything changes: no replay, ever. Raises ``MessageRefused``, ``DomainError``,
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

    async def sample(self, on: bool, seconds: int) -> None:
        """Begin or end sampling for the owner's adviser: it slows the Realm down, and tells its owner only.

        What began ends by itself a little after ``seconds``, in case nobody is there any more to end it. Raises
        ``DomainError``, also where sampling would have to wait for a change of percentage.
        """
        if on and not await self._percentages.free():
            raise DomainError("a percentage is being changed", hint="ask for advice when that has ended")
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
            raise DomainError("the VMM did not say what it sampled")
        return {"zones": answer["zones"], "fault_ns": answer["fault_ns"]}

    def open_stream(self, endpoint: int, number: int) -> None:
        """Begin a stream to another Realm. Raises as ``Messages.open``."""
        self._messages.open(self, endpoint, number)

    def open_broker(self, number: int) -> None:
        """Begin a stream to the broker of the configuration. Raises as ``Outlets.open``."""
        self._outlets.open(self, number)

    async def sealing_key(self, version: int) -> bytes:
        """The key of what this Realm, or an older version of its image, has sealed. Raises ``UsageError``,
        ``TrustZoneError``."""
        sealing = self.config.sealing
        if sealing is None:
            raise UsageError("this Realm seals nothing", hint="its image must say to whom: sealing")
        if version > sealing.version:
            raise UsageError("this was sealed by a newer version of the image")
        owner = sealing.to == OWNER
        claims = SealingClaims(
            personalization=self.config.personalization(),
            rim=bytes(32) if owner else bytes.fromhex(self.record.measurement),
            suite=self.config.suite,
            name=self.config.name if owner else "",
            version=version,
            debug=self.config.debug,
            domain_class=self.config.kind.name,
        )
        return await self._platform.sealing_key(claims)

    def messages(self) -> list[dict[str, Any]]:
        return self._messages.counts(self)

    # Stages

    async def _stages(self) -> None:
        await self._load_measured()
        if not await self._await_verdict():
            return
        await self._start()
        await self._serve()

    async def _close(self) -> None:
        await super()._close()
        if self._sampling:
            self._sampling.cancel()
        await self._auto.close()
        await self._percentages.close()
        self._messages.leave(self)
        self._outlets.leave(self)

    async def _await_verdict(self) -> bool:
        """Whether the owner said yes in time; otherwise the outcome is set."""
        self._deadline = time.time() + self.config.verdict_seconds
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
