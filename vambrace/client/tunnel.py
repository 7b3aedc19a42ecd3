"""Ports of a Realm on this machine: a socket for a program of one's own, or a local port for any client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from vambrace.attest.verify import VerifiedRealm
from vambrace.client.pipe import Pipe
from vambrace.client.streams import Streams, refuse
from vambrace.errors import HostUnreachable, UsageError, VambraceError

#: Where to listen: a host's name or address with a port (0: any), or the path of a Unix socket.
Address = tuple[str, int] | str
#: Opens a connection of its own.
Open = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Pipe, VerifiedRealm]]]
Told = Callable[[VambraceError], None]

OPEN_SECONDS: Final = 240.0
BACKLOG: Final = 64
PAUSE: Final = 0.1

T = TypeVar("T")


class Tunnel:
    """Streams to one domain, in a thread with an event loop. Their connection is made when it is needed, and anew, with
    fresh evidence, where it was cut. ``realm`` is what the last evidence states; ``cut`` is set when one ends.
    """

    def __init__(self, open_pipe: Open) -> None:
        self.realm: VerifiedRealm | None = None
        self.cut = threading.Event()
        self._open = open_pipe
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vambrace-tunnel", daemon=True)
        self._opening = asyncio.Lock()
        self._streams: Streams | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread.start()

    def close(self) -> None:
        """Cut everything that is still open."""
        if not self._loop.is_closed():
            with contextlib.suppress(HostUnreachable):
                self.do(self._close(), 10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def do(self, work: Coroutine[Any, Any, T], seconds: float = OPEN_SECONDS) -> T:
        """What ``work`` gives, or raises, in the tunnel's thread."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except TimeoutError as error:
            raise HostUnreachable("the Realm does not answer", hint="see 'vambrace ps'") from error
        finally:
            future.cancel()

    async def streams(self) -> Streams:
        """Those of the present connection, or of a new one. Raises what ``Pipe.open`` does."""
        async with self._opening:
            if self._streams is None:
                begun: asyncio.Future[Streams] = self._loop.create_future()
                begun.add_done_callback(lambda future: future.cancelled() or future.exception())
                self.task(self._carry(begun))
                return await asyncio.shield(begun)
            return self._streams

    async def socket(self, port: int) -> socket.socket:
        """One end of a pair whose other end is connected with a port of the domain."""
        ours, theirs = pair()
        try:
            await (await self.streams()).open(port, theirs).answered
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return ours

    def task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` until it ends or the tunnel does; in the tunnel's thread."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _carry(self, begun: asyncio.Future[Streams]) -> None:
        """One connection, from its beginning to its end."""
        try:
            async with self._open() as (pipe, self.realm):
                streams = await Streams.begin(pipe)
                self._streams = streams
                begun.set_result(streams)
                await streams.run()
        except VambraceError as error:
            if not begun.done():
                begun.set_exception(error)
        finally:
            if not begun.done():
                begun.cancel()
            self._streams = None
            self.cut.set()

    async def _close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Forward:
    """Listens at ``address``, and connects whoever comes with a port of the domain, until it is closed: a context
    manager. ``told`` hears why a client was refused. Raises ``UsageError`` where it cannot listen."""

    def __init__(self, tunnel: Tunnel, port: int, address: Address, told: Told) -> None:
        self._tunnel, self._port, self._told = tunnel, port, told
        self._listener = listen(address)
        self._listener.setblocking(False)
        self._path = address if isinstance(address, str) else None
        name = self._listener.getsockname()
        #: Where it listens: with the port that it was given, if any was asked for.
        self.address: Address = name if isinstance(name, str) else (name[0], name[1])
        self._task = tunnel.do(self._begin())

    def __enter__(self) -> Forward:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more; connections that were made go on."""
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(self._path).unlink()
            self._path = None
        self._tunnel.do(self._end())

    async def _begin(self) -> asyncio.Task[None]:
        return self._tunnel.task(self._accept())

    async def _end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError:  # too many files are open, or it has gone before it was accepted
                await asyncio.sleep(PAUSE)
                continue
            self._tunnel.task(self._connect(client))

    async def _connect(self, client: socket.socket) -> None:
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            streams = await self._tunnel.streams()
        except VambraceError as error:
            refuse(client)
            self._told(error)
            return
        try:
            await streams.open(self._port, client).answered
        except VambraceError as error:
            self._told(error)


def listen(address: Address) -> socket.socket:
    """A listening socket. Who may use that of a path is its owner only. Raises ``UsageError``."""
    try:
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            return socket.create_server(address, family=family, backlog=BACKLOG)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listener.bind(address)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        hint = "choose another address or port"
        raise UsageError(f"nobody can listen at {where}: {error.strerror}", hint=hint) from error


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, the second not blocking: of TCP, because only that knows a reset."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        ours = socket.create_connection(listener.getsockname())
        while True:
            theirs, caller = listener.accept()
            if caller == ours.getsockname():
                break
            theirs.close()  # somebody else of this machine's
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    theirs.setblocking(False)
    return ours, theirs
