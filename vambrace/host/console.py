"""The operator's console of a Normal VM: what it prints is kept for a while, and what is typed goes to it.

A Realm or Secure VM has none, unless its configuration says debug, which its token tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import WSCloseCode, WSMsgType, web

from vambrace.errors import CapacityError
from vambrace.host.websocket import until_one_ends, websocket

KEPT = 64 << 10
BEHIND = 256 << 10  # bytes that a reader may be behind; then it misses some
VIEWERS = 4
INPUT = 4 << 10  # bytes of one message


class Viewer:
    """One who looks: ``read`` waits for more."""

    def __init__(self, kept: bytes) -> None:
        self._waiting = bytearray(kept)
        self._arrived = asyncio.Event()
        if kept:
            self._arrived.set()

    def feed(self, data: bytes) -> None:
        self._waiting += data
        del self._waiting[: max(0, len(self._waiting) - BEHIND)]
        self._arrived.set()

    async def read(self) -> bytes:
        await self._arrived.wait()
        data = bytes(self._waiting)
        self._waiting.clear()
        self._arrived.clear()
        return data


class Terminal:
    """Of one domain; ``send`` takes what is typed."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self.send = send
        self._kept = bytearray()
        self._viewers: set[Viewer] = set()

    def feed(self, data: bytes) -> None:
        """What the guest has printed."""
        self._kept += data
        del self._kept[: max(0, len(self._kept) - KEPT)]
        for viewer in self._viewers:
            viewer.feed(data)

    def open(self) -> Viewer:
        """Raises ``CapacityError`` (429): too many look at it."""
        if len(self._viewers) >= VIEWERS:
            raise CapacityError(f"the console has {VIEWERS} viewers", hint="close one of them", status=429)
        viewer = Viewer(bytes(self._kept))
        self._viewers.add(viewer)
        return viewer

    def close(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)


async def serve(request: web.Request, terminal: Terminal, closers: set[Callable[[], None]]) -> web.StreamResponse:
    """A WebSocket of binary messages, until either side closes; one of ``closers`` ends it with the domain.

    Raises ``CapacityError`` (429), ``HostError`` (426).
    """
    socket = websocket(request, INPUT)
    viewer = terminal.open()
    ending = asyncio.Event()
    closers.add(ending.set)
    try:
        await socket.prepare(request)
        await until_one_ends(_downwards(socket, viewer), _upwards(socket, terminal), ending.wait())
        await socket.close(code=WSCloseCode.GOING_AWAY if ending.is_set() else WSCloseCode.OK)
    finally:
        closers.discard(ending.set)
        terminal.close(viewer)
    return socket


async def _downwards(socket: web.WebSocketResponse, viewer: Viewer) -> None:
    while True:
        await socket.send_bytes(await viewer.read())


async def _upwards(socket: web.WebSocketResponse, terminal: Terminal) -> None:
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            return
        await terminal.send(message.data)
