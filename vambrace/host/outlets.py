"""Streams from Realms to their key brokers (architecture, section 20). What goes through them is TLS that ends there.

The broker is the one of the measured configuration, and one that this host's settings name: what a Realm asks for
must not lead the daemon anywhere else, to its own API or to what only this machine reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import defaultdict
from collections.abc import Collection
from typing import Final

from vambrace.config import CONNECT
from vambrace.errors import CapacityError, Conflict, UsageError
from vambrace.host.agent import Bucket
from vambrace.host.lifecycle import State
from vambrace.host.messages import ENDPOINT_MEMORY, Party, header
from vambrace.host.messages import STREAMS as OF_ENDPOINT
from vambrace.host.relay import pump
from vambrace.host.vsock import MESSAGE_PORT, Connector
from vambrace.host.websocket import until_one_ends

STREAMS: Final = 4  # of each Realm at a time
#: Host memory for the broker of a Realm, as for an endpoint's streams.
OUTLET_MEMORY: Final = ENDPOINT_MEMORY * STREAMS // OF_ENDPOINT
#: Secrets are small.
RATE: Final = 1 << 20
BURST: Final = 1 << 20
CONNECT_SECONDS: Final = 15.0

log = logging.getLogger(__name__)


class Outlets:
    """All streams to brokers; ``allowed`` are the places, ``name:port``, that the host's settings name."""

    def __init__(self, allowed: Collection[str], connect: Connector) -> None:
        self._allowed = frozenset(allowed)
        self._connect = connect
        self._streams: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._buckets: dict[str, Bucket] = {}

    def open(self, realm: Party, number: int) -> None:
        """Begin the stream ``number`` of the agent of ``realm`` to its broker.

        Raises ``UsageError``, ``Conflict`` (this host knows no such broker, or the Realm does not run),
        ``CapacityError``.
        """
        broker = realm.config.broker
        if broker is None:
            raise UsageError("this Realm has no broker", hint="its image must name one")
        name, port = broker.place
        if f"{name}:{port}" not in self._allowed:
            raise Conflict(
                f"this host does not connect to the broker {name}:{port}",
                hint="its operator names those that it may connect to: brokers, in the host's settings",
                status=403,
            )
        if realm.lifecycle.state is not State.RUNNING:
            raise Conflict("the Realm does not run", status=409)
        streams = self._streams[realm.record.uuid]
        if len(streams) >= STREAMS:
            raise CapacityError(f"the Realm has {STREAMS} streams to its broker already", status=429)
        bucket = self._buckets.setdefault(realm.record.uuid, Bucket(RATE, BURST))
        task = asyncio.create_task(self._carry(realm.cid, number, (name, port), bucket))
        streams.add(task)
        task.add_done_callback(streams.discard)
        task.add_done_callback(_log_failure)

    def leave(self, realm: Party) -> None:
        """Cut every stream of a Realm that ends: its broker sees that it is gone."""
        self._buckets.pop(realm.record.uuid, None)
        for task in tuple(self._streams.pop(realm.record.uuid, ())):
            task.cancel()

    async def close(self) -> None:
        """Cut every stream and wait for it."""
        tasks = [task for streams in self._streams.values() for task in streams]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, cid: int, number: int, place: tuple[str, int], bucket: Bucket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    # The agent learns by the end of this that the broker did not answer.
                    agent = stack.enter_context(await self._connect(cid, MESSAGE_PORT))
                    await loop.sock_sendall(agent, header(CONNECT, number))
                    broker = stack.enter_context(await _connect_tcp(place))
            except (OSError, TimeoutError):
                return
            # TLS has no half of a connection: who has gone waits for nothing, and keeps no place.
            await until_one_ends(pump(agent, broker, bucket, _uncounted), pump(broker, agent, bucket, _uncounted))


async def _connect_tcp(place: tuple[str, int]) -> socket.socket:
    """Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(*place, type=socket.SOCK_STREAM):
        stream = socket.socket(family, kind, protocol)
        try:
            stream.setblocking(False)
            await loop.sock_connect(stream, address)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            stream.close()
            last = error
        except BaseException:
            stream.close()
            raise
        else:
            return stream
    raise last or OSError("the broker's name has no address")


def _uncounted(_bytes: int) -> None:
    pass


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("broker: internal error", exc_info=error)
