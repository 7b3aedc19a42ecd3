"""Who a client is, how many connections it may have, and for how long."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Final

#: Clients whose rate is remembered.
CLIENTS: Final = 8192
#: A connection is closed after this long, whatever it does: who sends slowly keeps nobody else out.
CONNECTION_SECONDS: Final = 60.0


def client_of(address: str) -> str:
    """Whom a rate is for: an IPv4 address, or the network of 64 bits in which an IPv6 client may choose its own."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class Gatekeeper:
    """Makes the protocols of connections, as ``asyncio``'s servers want them, and closes those beyond the bounds."""

    def __init__(self, make: Callable[[], asyncio.Protocol], total: int, each: int) -> None:
        self._make = make
        self._total = total
        self._each = each
        self._open: Counter[str] = Counter()

    def __call__(self) -> asyncio.Protocol:
        return _Guarded(self, self._make())

    def enter(self, client: str) -> bool:
        if self._open.total() >= self._total or self._open[client] >= self._each:
            return False
        self._open[client] += 1
        return True

    def leave(self, client: str) -> None:
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]


class _Guarded(asyncio.Protocol):
    """Another protocol behind a door: it never learns of a connection that is one too many."""

    def __init__(self, keeper: Gatekeeper, inner: asyncio.Protocol) -> None:
        self._keeper = keeper
        self._inner = inner
        self._client: str | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername")
        client = client_of(peer[0]) if isinstance(peer, tuple) else "unknown"
        if not self._keeper.enter(client):
            transport.abort()
            return
        self._client = client
        self._end = asyncio.get_running_loop().call_later(CONNECTION_SECONDS, transport.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._client is not None else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._client is None:
            return
        assert self._end is not None
        self._end.cancel()
        self._keeper.leave(self._client)
        self._inner.connection_lost(error)
