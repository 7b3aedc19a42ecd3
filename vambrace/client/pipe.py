"""An attested connection (docs/architecture.md, section 7) for an event loop: ``Channel`` is for one request at a time.

TLS 1.3 to the agent, through a WebSocket of the host's; evidence that is made for this very session comes before
anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from vambrace.attest.verify import VerifiedRealm
from vambrace.client import channel
from vambrace.client.channel import ENDED, MAX_LINE, Verify
from vambrace.client.host import Host
from vambrace.client.websocket import CONNECT_SECONDS, explained, place_of, terms
from vambrace.errors import ChannelClosed, DomainError, HostUnreachable

BLOCK = 64 << 10
#: Of one WebSocket message: the host keeps one for each direction.
MESSAGE = 256 << 10
REPLY_SECONDS = 180.0
#: A host that is gone is noticed after so long.
PING_SECONDS = 60.0


class Pipe:
    """Bytes to an agent and back. One task may send and one receive at a time."""

    def __init__(self, websocket: ClientConnection, context: ssl.SSLContext) -> None:
        self._websocket = websocket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=False)
        self._unread = bytearray()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, host: Host, uuid: str, certificate: Path, key: Path, verify: Verify
    ) -> AsyncIterator[tuple[Self, VerifiedRealm]]:
        """A verified one, and what its evidence states. Raises what ``Channel`` does."""
        context = channel.client_context(certificate, key)
        async with _open_websocket(host, host.channel_url(uuid)) as websocket:
            pipe = cls(websocket, context)
            await pipe._shake_hands()
            yield pipe, await pipe._attest(verify)

    async def request(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The agent's reply, of one line. Raises ``DomainError`` if it refuses, and what ``receive`` does."""
        await self.send(json.dumps({"op": operation, **arguments}).encode() + b"\n")
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                while b"\n" not in self._unread:
                    if len(self._unread) > MAX_LINE or not (data := await self.receive()):
                        raise ChannelClosed("the Realm closed the channel", hint=ENDED)
                    self._unread += data
        except TimeoutError as error:
            raise HostUnreachable("the Realm does not answer", hint="see 'vambrace ps'") from error
        line, _, rest = self._unread.partition(b"\n")
        self._unread = bytearray(rest)
        return channel.accepted(channel.decode_reply(bytes(line)))

    async def receive(self) -> bytes:
        """Some bytes; none when the agent has ended the connection. Raises ``DomainError``, ``HostUnreachable``."""
        if self._unread:
            found, self._unread = bytes(self._unread), bytearray()
            return found
        while True:
            try:
                return self._tls.read(BLOCK)
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise channel.broken(error) from error

    async def send(self, data: bytes) -> None:
        """Return when it is on its way: whoever sends waits for the host's reading. Raises ``ChannelClosed``."""
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                try:
                    sent += self._tls.write(view[sent:])
                except ssl.SSLError as error:
                    raise channel.broken(error) from error
        await self._flush()

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLError as error:
                with contextlib.suppress(ChannelClosed):
                    await self._flush()
                raise channel.broken(error) from error
            else:
                await self._flush()
                return

    async def _attest(self, verify: Verify) -> VerifiedRealm:
        spki = channel.public_key(self._tls.getpeercert(binary_form=True) or b"")
        nonce = os.urandom(32)
        token = channel.decode_token(await self.request("attest", nonce=nonce.hex()))
        return await asyncio.to_thread(verify, token, nonce, spki)

    async def _flush(self) -> None:
        try:
            while data := self._outgoing.read(MESSAGE):
                await self._websocket.send(data)
        except (ConnectionClosed, OSError) as error:
            raise ChannelClosed("the channel was cut", hint=ENDED) from error

    async def _more(self) -> None:
        await self._flush()
        try:
            data = await self._websocket.recv()
        except (ConnectionClosed, OSError) as error:
            raise ChannelClosed("the channel was cut", hint=ENDED) from error
        if not isinstance(data, bytes):
            raise DomainError("the host sent text on the channel", hint="is this a vambrace host?")
        self._incoming.write(data)


@contextlib.asynccontextmanager
async def _open_websocket(host: Host, url: str) -> AsyncIterator[ClientConnection]:
    """Raises ``HostUnreachable``, and what the host refuses with."""
    async with contextlib.AsyncExitStack() as stack:
        with explained(host):
            # A socket of our own: no proxy of the environment's comes between.
            stream = await asyncio.to_thread(socket.create_connection, place_of(host), CONNECT_SECONDS)
            stack.callback(stream.close)
            stream.setblocking(False)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting = connect(
                url, sock=stream, ping_interval=PING_SECONDS, ping_timeout=2 * PING_SECONDS, **terms(host)
            )
            opened = await stack.enter_async_context(connecting)
        with contextlib.suppress(WebSocketException):
            yield opened
