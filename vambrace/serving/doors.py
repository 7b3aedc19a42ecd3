"""The door of a service: who a client is, how many connections it may have, and for how long.

Connections are counted from when they are accepted, before TLS: who never ends a handshake keeps nobody else out.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from asyncio import FIRST_COMPLETED
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from vambrace.serving.problems import Handler

HANDSHAKE_SECONDS: Final = 10.0
#: From the end of the handshake until the head of the first request is there.
REQUEST_SECONDS: Final = 20.0
#: From one request to the next of a connection.
IDLE_SECONDS: Final = 75.0
FINISH_SECONDS: Final = 2.0
BACKLOG: Final = 128
PAUSE: Final = 0.1

# aiohttp has some lines and a traceback for each request that is none or breaks off, in which strangers write what they
# like. What goes wrong in a service itself, its own middleware says (``problems``).
_strangers = logging.getLogger(__name__)
_strangers.setLevel(logging.CRITICAL)


def client_of(address: str) -> str:
    """Whom bounds are for: an IPv4 address, or the network of 64 bits in which an IPv6 client may choose its own."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


@dataclass(frozen=True)
class Bounds:
    """Connections in ``total`` and of ``each`` client. One is closed after ``seconds``, whatever it does; None: it may
    last."""

    total: int
    each: int
    seconds: float | None = None


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, place: tuple[str, int], bounds: Bounds, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve ``app`` at an address; the port.

    At the end nobody is let in any more, what was begun has ``FINISH_SECONDS``, and the rest is cut.

    Raises ``OSError``: nobody can listen there.
    """
    # A body is taken as it comes: of a MiB that says it is compressed would become a GiB, on the disk or in memory.
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_strangers,
        keepalive_timeout=IDLE_SECONDS,
        shutdown_timeout=FINISH_SECONDS,
        auto_decompress=False,
    )
    keeper = _Gatekeeper(bounds, context)
    app.middlewares.insert(0, keeper.middleware())
    async with contextlib.AsyncExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in await _listeners(*place)]
        await runner.setup()
        assert runner.server is not None
        stack.push_async_callback(keeper.close)
        stack.push_async_callback(runner.cleanup)
        tasks = [asyncio.create_task(keeper.accept(listener, runner.server)) for listener in listeners]
        try:
            yield listeners[0].getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _listeners(name: str, port: int) -> list[socket.socket]:
    loop, found = asyncio.get_running_loop(), list[socket.socket]()
    try:
        for family, _, _, _, address in await loop.getaddrinfo(
            name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family)
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
    except BaseException:
        for listener in found:
            listener.close()
        raise
    return found


class _Gatekeeper:
    def __init__(self, bounds: Bounds, context: ssl.SSLContext | None) -> None:
        self._bounds = bounds
        self._context = context
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: dict[asyncio.BaseProtocol, _Watched] = {}

    def middleware(self) -> Middleware:
        """Notes that somebody has asked for something."""

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            watched = self._watched.get(request.protocol)
            if watched is not None and not watched.asked.done():
                watched.asked.set_result(None)
            return await handler(request)

        return noted

    async def accept(self, listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        """For ever; ``make`` gives the protocol of each connection."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                stream, peer = await loop.sock_accept(listener)
            except OSError:  # too many files are open, or it has gone before it was accepted
                await asyncio.sleep(PAUSE)
                continue
            client = client_of(peer[0])
            if self._open.total() >= self._bounds.total or self._open[client] >= self._bounds.each:
                stream.close()
                continue
            self._open[client] += 1
            task = asyncio.create_task(self._serve(stream, make()))
            self._tasks.add(task)
            task.add_done_callback(lambda task, client=client: self._left(task, client))  # type: ignore[misc]

    async def close(self) -> None:
        """Cut every connection."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _left(self, task: asyncio.Task[None], client: str) -> None:
        self._tasks.discard(task)
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]

    async def _serve(self, stream: socket.socket, protocol: asyncio.Protocol) -> None:
        watched = self._watched[protocol] = _Watched(protocol)
        try:
            async with asyncio.timeout(self._bounds.seconds):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: watched,
                    stream,
                    ssl=self._context,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS if self._context else None,
                )
                await asyncio.wait((watched.asked, watched.lost), timeout=REQUEST_SECONDS, return_when=FIRST_COMPLETED)
                if watched.asked.done():
                    await watched.lost
        except (OSError, TimeoutError):
            pass  # no handshake in time, or it has lasted for as long as it may
        finally:
            watched.abort()
            stream.close()
            del self._watched[protocol]


class _Watched(asyncio.Protocol):
    """Another protocol, when its connection was lost, and when it has asked for something."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.asked: asyncio.Future[None] = loop.create_future()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._inner.connection_lost(error)
        if not self.lost.done():
            self.lost.set_result(None)
