"""Streams to the agents of guests. The daemon opens all of them: nothing on the host listens to a guest."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

OWNER_PORT: Final = 4050  # architecture, section 7
MESSAGE_PORT: Final = 4051  # section 16

#: Opens a non-blocking stream to a port of a guest's agent, by the guest's CID; raises ``OSError``.
Connector = Callable[[int, int], Awaitable[socket.socket]]


async def connect_vsock(cid: int, port: int) -> socket.socket:
    """A ``Connector``."""
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, (cid, port))
    except BaseException:
        stream.close()
        raise
    return stream
