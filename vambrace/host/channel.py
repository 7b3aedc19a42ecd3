"""A user's channel: opaque bytes between a WebSocket and the agent's vsock port, in bounded buffers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from vambrace.errors import CapacityError, Conflict, HostError
from vambrace.host.lifecycle import Lifecycle, State
from vambrace.host.relay import PAUSE, UNSENT, unsent
from vambrace.host.vsock import OWNER_PORT, Connector
from vambrace.host.websocket import until_one_ends, websocket

CHUNK = 64 << 10
MESSAGE_LIMIT = 1 << 20
CONNECT_SECONDS = 30


class Reached(Protocol):
    """A domain whose agent its owner reaches. ``channels``: open ones; ``closers`` are called when it ends."""

    channels: int
    closers: set[Callable[[], None]]

    @property
    def cid(self) -> int: ...
    @property
    def lifecycle(self) -> Lifecycle: ...


async def relay(request: web.Request, domain: Reached, connect: Connector, limit: int) -> web.StreamResponse:
    """Serve one channel until either side closes or the domain ends.

    Raises ``Conflict`` (not running), ``CapacityError`` (429, too many channels), ``HostError`` (503).
    """
    state = domain.lifecycle.state
    if state is not State.RUNNING:
        ends = state is State.DESTROYING or state.final
        hint = "'vambrace ps --all' shows how it ended" if ends else "wait until it is running"
        raise Conflict(f"the domain is {state.value}", hint=hint, status=409)
    if domain.channels >= limit:
        raise CapacityError(f"the domain has {limit} channels", hint="close one of them", status=429)
    socket_ = websocket(request, MESSAGE_LIMIT)
    ending = asyncio.Event()
    domain.closers.add(ending.set)
    domain.channels += 1
    try:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                stream = await connect(domain.cid, OWNER_PORT)
        except (OSError, TimeoutError):
            raise HostError("the agent does not answer yet", hint="try again in a moment", status=503) from None
        with stream:
            await socket_.prepare(request)
            await until_one_ends(_upwards(socket_, stream), _downwards(socket_, stream), ending.wait())
        await socket_.close(code=WSCloseCode.GOING_AWAY if ending.is_set() else WSCloseCode.OK)
    finally:
        domain.channels -= 1
        domain.closers.discard(ending.set)
    return socket_


async def _upwards(socket_: web.WebSocketResponse, stream: socket.socket) -> None:
    """User to agent. Reads the next message only when this one is sent: the user's TCP is the queue."""
    loop = asyncio.get_running_loop()
    async for message in socket_:
        if message.type is not WSMsgType.BINARY:
            return
        while unsent(stream) > UNSENT:  # a guest says itself how much it takes
            await asyncio.sleep(PAUSE)
        await loop.sock_sendall(stream, message.data)


async def _downwards(socket_: web.WebSocketResponse, stream: socket.socket) -> None:
    """Agent to user; ``send_bytes`` waits while the connection is full."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(stream, CHUNK):
        await socket_.send_bytes(data)
