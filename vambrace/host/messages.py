"""Messages between Realms (architecture, section 16): streams that the monitor carries from one to the other.

Denied by default: there is a stream only between two running Realms each of which names the other in its measured
configuration, in endpoints of one name, one of them offered. What runs has its owner's verdict, so an owner that an
endpoint names has said yes to the very Realm that is at the other end, whatever the operator calls it.

A guest opens nothing at the host and is asked nothing: its agent says over the monitor's port which endpoint a program
wants, the daemon connects to both agents, and what comes from there is opaque. Each direction of a stream waits for its
reader, with one buffer of ours; any two Realms have one token bucket; every buffer that was copied gives way to whoever
else the event loop has to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from vambrace.config import CONNECT, OFFER, DomainConfig, Endpoint
from vambrace.errors import CapacityError, Conflict, UsageError
from vambrace.host.agent import Bucket
from vambrace.host.coarse import REFRESH_SECONDS, Coarse
from vambrace.host.lifecycle import Lifecycle, State
from vambrace.host.relay import CHUNK, UNSENT, pump
from vambrace.host.store import DomainRecord
from vambrace.host.vsock import MESSAGE_PORT, Connector

STREAMS: Final = 16  # of each endpoint of each Realm at a time
#: Host memory for each endpoint of a Realm: of each stream one of the two buffers, what waits for the guest in the
#: kernel (a buffer more, as it is looked at before it is given one), and what waits for the daemon there.
ENDPOINT_MEMORY: Final = STREAMS * (CHUNK + UNSENT + CHUNK + (256 << 10))
BURST: Final = 4 << 20
CONNECT_SECONDS: Final = 10.0
GRAIN: Final = 1 << 20

log = logging.getLogger(__name__)


class Party(Protocol):
    """A Realm as it is seen from here. Its name is the one in ``config``: that is measured, the record's is not."""

    @property
    def record(self) -> DomainRecord: ...
    @property
    def config(self) -> DomainConfig: ...
    @property
    def cid(self) -> int: ...
    @property
    def lifecycle(self) -> Lifecycle: ...


@dataclass
class Tally:
    """What one endpoint of a Realm has seen; bytes from its own side."""

    connections: int = 0
    refused: int = 0
    sent: int = 0
    received: int = 0

    def add(self, other: Tally) -> None:
        self.connections += other.connections
        self.refused += other.refused
        self.sent += other.sent
        self.received += other.received


class Pair:
    """Two Realms with one endpoint: ``caller`` connects to what ``offerer`` offers. Lives as long as both."""

    def __init__(self, caller: Party, caller_index: int, offerer: Party, offer_index: int, bucket: Bucket) -> None:
        self.caller, self.caller_index = caller, caller_index
        self.offerer, self.offer_index = offerer, offer_index
        self.bucket = bucket
        self.connections = 0
        self.refused = 0
        self.upwards = 0  # bytes from the caller
        self.downwards = 0
        self.streams: set[asyncio.Task[None]] = set()
        self._coarse = (Coarse(GRAIN), Coarse(GRAIN))
        self._shown = (0, 0)

    @property
    def endpoint(self) -> str:
        return self.caller.config.endpoints[self.caller_index].name

    def ended(self, stream: asyncio.Task[None]) -> None:
        self.streams.discard(stream)
        if not stream.cancelled() and (error := stream.exception()) is not None:
            log.error("endpoint %s: internal error", self.endpoint, exc_info=error)

    def side(self, party: Party) -> int | None:
        """Which of the endpoints of ``party`` this is, None where it has no part in it."""
        if party is self.caller:
            return self.caller_index
        return self.offer_index if party is self.offerer else None

    def tally(self, party: Party) -> Tally:
        sent, received = self.upwards, self.downwards
        if party is self.offerer:
            sent, received = received, sent
        return Tally(self.connections, self.refused, sent, received)

    def published(self) -> PublishedPair:
        """For the operator: of the bytes only the steps that they have passed."""
        now = (self.upwards, self.downwards)
        for coarse, count, shown in zip(self._coarse, now, self._shown, strict=True):
            coarse.add(count - shown)
        self._shown = now
        up, down = (coarse.published for coarse in self._coarse)
        caller, offerer = self.caller.record.name, self.offerer.record.name
        return PublishedPair(caller, offerer, self.endpoint, self.connections, self.refused, up, down)


@dataclass(frozen=True)
class PublishedPair:
    """As an operator sees a pair: by the names that they know the Realms by. Bytes are from the caller, and to it."""

    caller: str
    offerer: str
    endpoint: str
    connections: int
    refused: int
    upwards: int
    downwards: int


@dataclass(frozen=True)
class Published:
    """As of the last minute. ``refused``: attempts that led to no Realm, by the Realm's name."""

    pairs: tuple[PublishedPair, ...] = ()
    refused: tuple[tuple[str, int], ...] = ()


class Messages:
    """All streams between the Realms that ``living`` gives, oldest first. ``rate``: of any two, in bytes per second."""

    def __init__(self, living: Callable[[], Iterable[Party]], connect: Connector, rate: int) -> None:
        self._living = living
        self._connect = connect
        self._rate = rate
        self._pairs: dict[tuple[str, str, str], Pair] = {}
        # Of each Realm and endpoint: what led to no pair, and what pairs counted whose other Realm has ended.
        self._others: dict[str, list[Tally]] = {}
        self.published = Published()

    def open(self, caller: Party, index: int, number: int) -> None:
        """Begin the stream ``number`` of the agent of ``caller``, for its endpoint ``index``.

        Raises ``UsageError``, ``Conflict`` (nobody agrees: the answer does not say more), ``CapacityError``.
        """
        endpoints = caller.config.endpoints
        if not 0 <= index < len(endpoints) or endpoints[index].role != CONNECT:
            raise UsageError("no such endpoint to connect to")
        pair = self._pair(caller, index)
        if pair is None:
            self._other(caller)[index].refused += 1
            raise Conflict(f"no running Realm agrees to the endpoint {endpoints[index].name}", status=409)
        for party, place in ((caller, index), (pair.offerer, pair.offer_index)):
            if sum(len(other.streams) for other in self._pairs.values() if other.side(party) == place) >= STREAMS:
                pair.refused += 1
                raise CapacityError(f"the endpoint {pair.endpoint} has {STREAMS} streams already", status=429)
        task = asyncio.create_task(self._carry(pair, number))
        pair.streams.add(task)
        task.add_done_callback(pair.ended)

    def counts(self, party: Party) -> list[dict[str, Any]]:
        """For its owner: every pair and endpoint of a Realm, to the byte. ``peer`` is null where there is none now."""
        rows = []
        for index, endpoint in enumerate(party.config.endpoints):
            rows.append(_row(endpoint, None, self._other(party)[index], 0))
            for pair in self._pairs.values():
                if pair.side(party) == index:
                    peer = pair.offerer if party is pair.caller else pair.caller
                    rows.append(_row(endpoint, peer.config.name, pair.tally(party), len(pair.streams)))
        return rows

    def leave(self, party: Party) -> None:
        """Cut every stream of a Realm that ends."""
        for key, pair in tuple(self._pairs.items()):
            if party in (pair.caller, pair.offerer):
                del self._pairs[key]
                for task in pair.streams:
                    task.cancel()
                peer = pair.offerer if party is pair.caller else pair.caller
                place = pair.side(peer)
                assert place is not None
                self._other(peer)[place].add(pair.tally(peer))
        self._others.pop(party.record.uuid, None)

    async def close(self) -> None:
        """Cut every stream and wait for it."""
        tasks = [task for pair in self._pairs.values() for task in pair.streams]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Publish for ever, at a fixed pace: who asks does not choose the moment."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self.publish()

    def publish(self) -> None:
        refused: Counter[str] = Counter()
        for party in self._living():
            if tallies := self._others.get(party.record.uuid):
                refused[party.record.name] += sum(tally.refused for tally in tallies)
        pairs = tuple(pair.published() for pair in self._pairs.values())
        self.published = Published(pairs, tuple((+refused).items()))

    def _other(self, party: Party) -> list[Tally]:
        return self._others.setdefault(party.record.uuid, [Tally() for _ in party.config.endpoints])

    def _pair(self, caller: Party, index: int) -> Pair | None:
        """The oldest running Realm whose configuration and that of ``caller`` agree on the endpoint."""
        if caller.lifecycle.state is not State.RUNNING:
            return None
        for offerer in self._living():
            if offerer is caller or offerer.lifecycle.state is not State.RUNNING:
                continue
            place = agreed(caller, index, offerer)
            if place is not None:
                key = (caller.record.uuid, offerer.record.uuid, caller.config.endpoints[index].name)
                if key not in self._pairs:
                    self._pairs[key] = Pair(caller, index, offerer, place, self._bucket(caller, offerer))
                return self._pairs[key]
        return None

    def _bucket(self, *both: Party) -> Bucket:
        """One for all endpoints that two Realms have in common: more of them give no larger share of the daemon."""
        known = (pair.bucket for pair in self._pairs.values() if pair.caller in both and pair.offerer in both)
        return next(known, None) or Bucket(self._rate, BURST)

    async def _carry(self, pair: Pair, number: int) -> None:
        """One stream, until both directions have ended or it is cancelled."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    # The caller first: it learns by the end of its stream that the other agent did not answer.
                    caller = stack.enter_context(await self._connect(pair.caller.cid, MESSAGE_PORT))
                    await loop.sock_sendall(caller, header(CONNECT, number))
                    offerer = stack.enter_context(await self._connect(pair.offerer.cid, MESSAGE_PORT))
                    await loop.sock_sendall(offerer, header(OFFER, pair.offer_index))
            except (OSError, TimeoutError):
                pair.refused += 1
                return
            pair.connections += 1

            def upwards(count: int) -> None:
                pair.upwards += count

            def downwards(count: int) -> None:
                pair.downwards += count

            async with asyncio.TaskGroup() as both:
                both.create_task(pump(caller, offerer, pair.bucket, upwards))
                both.create_task(pump(offerer, caller, pair.bucket, downwards))


def agreed(caller: Party, index: int, offerer: Party) -> int | None:
    """Which endpoint of ``offerer`` belongs to the endpoint ``index`` of ``caller``, if each names the other."""
    wanted = caller.config.endpoints[index]
    if caller.config.debug != offerer.config.debug:
        return None  # the operator reads the console of one of them, and who named an owner need not expect that
    for place, offer in enumerate(offerer.config.endpoints):
        if offer.name == wanted.name and offer.role == OFFER:
            return place if _names(wanted, offerer) and _names(offer, caller) else None
    return None


def _names(endpoint: Endpoint, party: Party) -> bool:
    """Whether the peer that ``endpoint`` names is ``party``: by what was measured of it, never by what it is called."""
    return (
        endpoint.owner == party.config.personalization().hex()
        and endpoint.realm in ("", party.config.name)
        and endpoint.measurement in ("", party.record.measurement)
    )


def header(role: str, number: int) -> bytes:
    """What the daemon says first on a stream to an agent, 5 bytes: what the agent is to do with it, and a number.

    ``connect``: it is the agent's own stream of that number; ``offer``: it is for that endpoint.
    """
    return struct.pack(">cI", b"c" if role == CONNECT else b"o", number)


def _row(endpoint: Endpoint, peer: str | None, tally: Tally, streams: int) -> dict[str, Any]:
    return {"endpoint": endpoint.name, "role": endpoint.role, "peer": peer, "open": streams, **vars(tally)}
