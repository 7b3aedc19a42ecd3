"""Bounds for who asks too often, too slowly, or with too many connections."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from vambrace.problem import problem
from vambrace.rates import Rates

BURST_SECONDS: Final = 2
#: Addresses whose rate is remembered.
ADDRESSES: Final = 4096
CONNECTIONS: Final = 1024
IDLE_SECONDS: Final = 75.0
LOOK_SECONDS: Final = 5.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Limits:
    """As middleware it counts requests; ``watch`` closes connections that ask nothing, or never end to ask."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = Rates(rate, rate * BURST_SECONDS, ADDRESSES, clock)
        self._clock = clock
        self._last: weakref.WeakKeyDictionary[asyncio.BaseTransport, float] = weakref.WeakKeyDictionary()

    def middleware(self) -> Middleware:
        @web.middleware
        async def bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self._rates.take(request.remote or ""):
                response = problem(429, "rate", "too many requests from this address", "try again in a moment")
                response.headers["Retry-After"] = "1"
                return response
            self._seen(request.transport)
            try:
                return await handler(request)
            finally:
                self._seen(request.transport)

        return bounded

    async def watch(self, server: web.Server) -> None:
        """For ever. A connection has ``IDLE_SECONDS`` from one request to the next, that no request lasts for."""
        while True:
            self.look(server)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, server: web.Server) -> None:
        """Close what was idle for too long, and of too many connections those that were for longest."""
        now = self._clock()
        found = [each.transport for each in server.connections if each.transport is not None]
        for transport in found:
            self._last.setdefault(transport, now)
        by_age = sorted(found, key=lambda transport: self._last[transport])
        surplus = max(0, len(found) - CONNECTIONS)
        for place, transport in enumerate(by_age):
            if place < surplus or now - self._last[transport] > IDLE_SECONDS:
                transport.abort()

    def _seen(self, transport: asyncio.BaseTransport | None) -> None:
        if transport is not None:
            self._last[transport] = self._clock()

