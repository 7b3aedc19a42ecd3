"""WebSockets of the API: bytes in both directions until one of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from vambrace.errors import HostError

HEARTBEAT = 60


def websocket(request: web.Request, limit: int) -> web.WebSocketResponse:
    """One for the request, with messages of ``limit`` bytes at most. Raises ``HostError`` (426)."""
    socket = web.WebSocketResponse(max_msg_size=limit, heartbeat=HEARTBEAT, compress=False)
    if not socket.can_prepare(request):
        raise HostError("this is a WebSocket", hint="ask for an upgrade to websocket", status=426)
    return socket


async def until_one_ends(*parts: Coroutine[Any, Any, object]) -> None:
    """Run all of them until the first has ended, in whatever way; the others are cancelled."""
    work = {asyncio.create_task(part) for part in parts}
    try:
        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for part in work:
            part.cancel()
        await asyncio.gather(*work, return_exceptions=True)
