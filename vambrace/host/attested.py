"""A domain that is measured and attested: an instance of its own, evidence, and an agent that its owner reaches."""

from __future__ import annotations

import asyncio
import logging

from vambrace.attest.challenge import launch_challenge
from vambrace.errors import AgentFlood, CapacityError, DomainError, UsageError
from vambrace.host.agent import AgentPort, OwnerOrders
from vambrace.host.domain import Admitted, Domain, Services
from vambrace.host.lifecycle import State
from vambrace.host.vmm import AgentBytes, Event
from vambrace.measure.registers import Registers
from vambrace.trustzone import RealmClaims

log = logging.getLogger(__name__)


class Attested(Domain):
    """From a launch token that the host cannot forge to an agent that is ready. Subclasses say when it starts."""

    def __init__(self, admitted: Admitted, services: Services) -> None:
        super().__init__(admitted, services)
        self._platform = services.platform
        self._signed = admitted.signed
        self.channels = 0  # open ones, of its owner
        self._token: bytes | None = None
        self._registers = Registers(self.config.hash)
        self._agent = AgentPort(self, self._send_agent, self._orders())
        self._ready = asyncio.Event()

    def _orders(self) -> OwnerOrders | None:
        """Who takes the owner's orders that come through the agent, where there are any to take."""
        return None

    @property
    def token(self) -> bytes | None:
        return self._token

    # Called by the agent's port (section 6)

    def identity(self) -> bytes:
        return self._instance

    async def attest(self, challenge: bytes) -> bytes:
        return await self._platform.token(self._claims(challenge))

    def extend(self, register: int, digest: bytes) -> bytes:
        """Extend a measurement register by the digest of what has happened; what it is then. Raises ``UsageError``."""
        return self._registers.extend(register, digest)

    def report(self, state: str, detail: str) -> None:
        if state in ("succeeded", "failed") and self.config.kind.ends_itself:
            if state == "succeeded":
                self.finish(State.SUCCEEDED, detail or "all applications have succeeded", "by its agent")
            else:
                self.finish(State.FAILED, detail or "an application failed", "by its agent")
        elif self.record.agent != state:
            if state == "ready" and self.record.agent:
                raise UsageError("the agent was ready before")
            self.record.agent = state
            self._note(f"agent {state}", 405)
            self._ready.set()

    # Stages

    async def _load_measured(self) -> None:
        """Load and measure, and fetch the launch token for that."""
        keys = await self._platform.fresh_keys()
        self.record.instance = keys.instance.hex()
        await self._spawn()
        await self._move(State.LOADING)
        secret = {"share": keys.share.hex()} if self.config.kind.encrypted else {}
        answer = await self._load(instance=keys.instance.hex(), **secret)
        try:
            measurement = bytes.fromhex(answer["measurement"])
        except (KeyError, TypeError, ValueError):
            raise DomainError("the VMM gave no measurement") from None
        if self._signed is not None and measurement != self._signed:
            raise DomainError("what was loaded is not what the platform's owner signed", hint="send the image again")
        self.record.measurement = measurement.hex()
        challenge = launch_challenge(bytes.fromhex(self.record.nonce), self._instance, self.config.suite)
        self._token = await self._platform.token(self._claims(challenge))

    async def _serve(self) -> None:
        """Answer the agent for ever. Raises ``DomainError``: it is not ready in time."""
        agent = asyncio.create_task(self._agent.serve())
        ready = asyncio.create_task(self._await_ready())
        try:
            await asyncio.gather(agent, ready)
        finally:
            agent.cancel()
            ready.cancel()

    async def _await_ready(self) -> None:
        try:
            async with asyncio.timeout(self._settings.agent_seconds):
                await self._ready.wait()
        except TimeoutError:
            raise DomainError(f"the agent was not ready within {self._settings.agent_seconds} s") from None
        try:
            await self._save()
        except CapacityError as error:
            # Nothing depends on it: a domain that runs goes on.
            log.error("domain %s: %s", self.record.uuid, error.message)

    def _on_event(self, event: Event) -> None:
        match event:
            case AgentBytes(data):
                try:
                    self._agent.receive(data)
                except AgentFlood as error:
                    self.finish(State.FAILED, error.message)
            case _:
                super()._on_event(event)

    async def _send_agent(self, data: bytes) -> None:
        if self._vmm is not None:
            await self._vmm.send_agent(data, self._settings.vmm_seconds)

    @property
    def _instance(self) -> bytes:
        return bytes.fromhex(self.record.instance)

    def _claims(self, challenge: bytes) -> RealmClaims:
        return RealmClaims(
            instance=self._instance,
            rim=bytes.fromhex(self.record.measurement),
            rems=self._registers.values,
            personalization=self.config.personalization(),
            challenge=challenge,
            suite=self.config.suite,
            debug=self.config.debug,
            key_storage="dram",
            cache_partition=self._place.partition.value,
            domain_class=self.config.kind.name,
        )
