"""Copies bytes from one guest's stream to another's, for as long as neither has to be waited for in a single call.

What comes is read, paid for and sent on in one callback of the event loop: no task is woken, and nothing is registered
anew, as long as the bucket has tokens and the target takes all. One buffer for each turn of the loop, so everybody else
that is ready has a turn in between. Where something must be waited for, a coroutine takes over for that buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
from collections.abc import Callable
from typing import Final

from vambrace.host.agent import Bucket

CHUNK: Final = 64 << 10
#: What the host's kernel may hold for one guest and stream; a guest says itself how much it takes.
UNSENT: Final = 256 << 10
LEAST_COST: Final = 16 << 10  # of a buffer, however little is in it
PAUSE: Final = 0.005
_SIOCOUTQ: Final = 0x5411


async def pump(source: socket.socket, target: socket.socket, bucket: Bucket, count: Callable[[int], None]) -> None:
    """Copy until ``source`` ends or either fails, then end this direction at both; the other one may go on."""
    view = memoryview(bytearray(CHUNK))
    try:
        while stuck := await _Quick(source, target, bucket, count, view).run():
            # Something has to be waited for: this buffer goes the slow way.
            if not stuck.paid:
                await bucket.take(max(stuck.whole, LEAST_COST))
            while unsent(target) > UNSENT:
                await asyncio.sleep(PAUSE)
            await asyncio.get_running_loop().sock_sendall(target, view[stuck.sent : stuck.whole])
            count(stuck.whole)
    except OSError:
        pass  # one of the two is gone: the same end, for a stream of a guest's has no other
    finally:
        view[:] = bytes(CHUNK)
        for stream, way in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
            with contextlib.suppress(OSError):
                stream.shutdown(way)


class _Stuck:
    """A buffer with ``whole`` bytes of which ``sent`` were sent; ``paid``: the bucket has given its tokens."""

    def __init__(self, whole: int, paid: bool, sent: int = 0) -> None:
        self.whole, self.paid, self.sent = whole, paid, sent


class _Quick:
    """Copies in the event loop's own callbacks. ``view`` is the buffer."""

    def __init__(
        self,
        source: socket.socket,
        target: socket.socket,
        bucket: Bucket,
        count: Callable[[int], None],
        view: memoryview,
    ) -> None:
        self._source, self._target, self._bucket, self._count, self._view = source, target, bucket, count, view
        self._loop = asyncio.get_running_loop()
        self._stuck: asyncio.Future[_Stuck | None] = self._loop.create_future()

    async def run(self) -> _Stuck | None:
        """Copy until something has to be waited for; None when ``source`` has ended. Raises ``OSError``."""
        self._loop.add_reader(self._source, self._readable)
        try:
            return await self._stuck
        finally:
            self._loop.remove_reader(self._source)

    def _readable(self) -> None:
        try:
            found = self._copy()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error=error)
        else:
            if found is None:
                self._end()
            elif found.sent < found.whole:
                self._end(found)

    def _end(self, found: _Stuck | None = None, error: OSError | None = None) -> None:
        # Now, not when the coroutine runs: what is in the buffer must stay.
        self._loop.remove_reader(self._source)
        if self._stuck.done():
            return
        if error is not None:
            self._stuck.set_exception(error)
        else:
            self._stuck.set_result(found)

    def _copy(self) -> _Stuck | None:
        """One buffer; None at the end of ``source``."""
        length = self._source.recv_into(self._view)
        if not length:
            return None
        if not self._bucket.take_at_once(max(length, LEAST_COST)):
            return _Stuck(length, paid=False)
        if unsent(self._target) > UNSENT:
            return _Stuck(length, paid=True)
        try:
            sent = self._target.send(self._view[:length])
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == length:
            self._count(length)
        return _Stuck(length, paid=True, sent=sent)


def unsent(stream: socket.socket) -> int:
    """Bytes that wait in the kernel until the guest takes them; 0 where the kernel does not say (before Linux 6.12)."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(stream, _SIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0
