"""Many streams to published ports over one verified connection: the owner's side (architecture, section 7).

Each stream has a local socket; what is written into it comes out at the program in the Realm, and the other way round.
A side that does not read is waited for: with it waits its stream, and no other one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final

from vambrace.client.channel import OTHER_VERSION
from vambrace.client.pipe import Pipe
from vambrace.errors import ChannelClosed, DomainError, VambraceError

HEADER: Final = struct.Struct(">cII")
CHUNK: Final = (32 << 10) - HEADER.size  # of one frame: with its header two records of TLS
WINDOW: Final = 1 << 20  # bytes of one stream that may wait here for the local side
MOST: Final = 1 << 30  # of credit, whatever the other side says
#: What may wait for the connection before local sides are not read any more, and what is sent at once.
FULL: Final = 256 << 10
BURST: Final = 128 << 10
OPEN, DATA, CREDIT, END, RESET = b"o", b"d", b"c", b"e", b"r"
CUT, NOT_PUBLISHED, NOT_SERVED, TOO_MANY = range(4)
REASONS: Final = {
    CUT: ("the program in the Realm cut the connection", "see 'vambrace logs'"),
    NOT_PUBLISHED: ("the agent publishes no such port", OTHER_VERSION),
    NOT_SERVED: ("its application does not serve on port {port} (yet)", "see 'vambrace logs', and try again"),
    TOO_MANY: ("the Realm has as many streams as it can", "close some of them"),
}


class Stream:
    """One connection to ``port``. ``local`` belongs to it. ``answered`` is done when the program is connected, or has
    the error why it is not."""

    def __init__(self, number: int, port: int, local: socket.socket, credit: int) -> None:
        self.number, self.port, self.local, self.credit = number, port, local, credit
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.waiting = bytearray()  # for the local side
        self.taken = 0  # by the local side, and not yet credited
        self.ended = False  # the program has said all
        self.more = asyncio.Event()  # to write
        self.room = asyncio.Event()  # to send
        self.task: asyncio.Task[None] | None = None

    def fail(self, error: VambraceError) -> None:
        """End it: whoever is at the local side sees a reset."""
        if not self.answered.done():
            self.answered.set_exception(error)
        if self.task:
            self.task.cancel()


class Streams:
    """All streams of one connection, of the event loop in which it was made. ``problem`` says why it has ``ended``."""

    def __init__(self, pipe: Pipe, window: int) -> None:
        self._pipe, self._window = pipe, window
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._out = bytearray()
        self._something, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.problem: VambraceError | None = None

    @classmethod
    async def begin(cls, pipe: Pipe) -> Streams:
        """From here on the connection carries nothing else. Raises ``DomainError``."""
        window = (await pipe.request("streams", window=WINDOW)).get("window")
        if type(window) is not int or not 0 < window <= MOST:
            raise DomainError("the agent's reply has no window", hint=OTHER_VERSION)
        return cls(pipe, window)

    async def run(self) -> None:
        """Carry until the connection ends, then cut all streams. Raises why it ended: ``DomainError`` or one below."""
        problem: VambraceError = ChannelClosed("the channel was closed")
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._read())
                both.create_task(self._write())
        except* VambraceError as errors:
            first = errors.exceptions[0]
            problem = first if isinstance(first, VambraceError) else problem
        finally:
            self.problem = problem
            self.ended.set()
            open_ones = tuple(self._streams.values())
            for stream in open_ones:
                stream.fail(problem)
            await asyncio.gather(*(stream.task for stream in open_ones if stream.task), return_exceptions=True)
        raise problem

    def open(self, port: int, local: socket.socket) -> Stream:
        """Connect ``local`` (connected and non-blocking, ours from here on) with a port. What it sends goes at once."""
        self._last += 1
        stream = self._streams[self._last] = Stream(self._last, port, local, self._window)
        self._tell(OPEN, stream.number, port)
        stream.task = asyncio.create_task(self._carry(stream))
        return stream

    # One stream

    async def _carry(self, stream: Stream) -> None:
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._outwards(stream))
                both.create_task(self._inwards(stream))
        except* OSError:
            self._tell(RESET, stream.number, CUT)
            refuse(stream.local)
        except* asyncio.CancelledError:
            refuse(stream.local)
        finally:
            stream.local.close()
            self._streams.pop(stream.number, None)

    async def _outwards(self, stream: Stream) -> None:
        while True:
            while not stream.credit:
                stream.room.clear()
                await stream.room.wait()
            await self._room.wait()
            data = await self._loop.sock_recv(stream.local, min(CHUNK, stream.credit))
            if not data:
                self._tell(END, stream.number)
                return
            stream.credit -= len(data)
            self._tell(DATA, stream.number, len(data), data)

    async def _inwards(self, stream: Stream) -> None:
        while True:
            while not stream.waiting and not stream.ended:
                stream.more.clear()
                await stream.more.wait()
            if not stream.waiting:
                stream.local.shutdown(socket.SHUT_WR)
                return
            data = bytes(stream.waiting)
            await self._loop.sock_sendall(stream.local, data)
            del stream.waiting[: len(data)]
            self._took(stream, len(data))

    def _give(self, stream: Stream, data: memoryview) -> None:
        """Bytes from the program: to the local side at once, if it takes them."""
        if len(stream.waiting) + stream.taken + len(data) > WINDOW:
            raise DomainError("the agent sent more than was asked for", hint=OTHER_VERSION)
        sent = 0
        if not stream.waiting:
            # Where it is broken, the stream's own task finds out.
            with contextlib.suppress(OSError):
                sent = stream.local.send(data)
        stream.waiting += data[sent:]
        stream.more.set()
        self._took(stream, sent)

    def _took(self, stream: Stream, count: int) -> None:
        stream.taken += count
        if stream.taken >= WINDOW // 4 and not stream.ended:
            self._tell(CREDIT, stream.number, stream.taken)
            stream.taken = 0

    # The connection

    async def _read(self) -> None:
        unread = bytearray()
        while data := await self._pipe.receive():
            unread += data
            place = 0
            with memoryview(unread) as view:
                while len(unread) - place >= HEADER.size:
                    kind, number, value = HEADER.unpack_from(view, place)
                    length = value if kind == DATA else 0
                    if length > CHUNK:
                        raise DomainError("the agent sent a frame that is too long", hint=OTHER_VERSION)
                    if len(unread) - place < HEADER.size + length:
                        break
                    place += HEADER.size + length
                    with view[place - length : place] as content:
                        self._frame(kind, number, value, content)
            del unread[:place]
        raise ChannelClosed("the Realm closed the channel", hint="'vambrace ps --all' shows whether it still runs")

    def _frame(self, kind: bytes, number: int, value: int, data: memoryview) -> None:
        if number > self._last:
            raise DomainError("the agent speaks of a stream that was never opened", hint=OTHER_VERSION)
        stream = self._streams.get(number)
        if stream is None:
            return  # it has ended here, which the agent could not know
        if kind == DATA and not stream.ended:
            self._give(stream, data)
        elif kind == CREDIT:
            stream.credit = min(MOST, stream.credit + value)
            stream.room.set()
        elif kind == OPEN:
            if not stream.answered.done():
                stream.answered.set_result(None)
        elif kind == END:
            stream.ended = True
            stream.more.set()
        elif kind == RESET:
            message, hint = REASONS.get(value, REASONS[CUT])
            stream.fail(DomainError(message.format(port=stream.port), hint=hint))
        else:
            raise DomainError("the agent sent no frame of a stream", hint=OTHER_VERSION)

    async def _write(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._out:
                data = bytes(self._out[:BURST])
                del self._out[:BURST]
                if len(self._out) < FULL:
                    self._room.set()
                await self._pipe.send(data)

    def _tell(self, kind: bytes, number: int, value: int = 0, data: bytes = b"") -> None:
        self._out += HEADER.pack(kind, number, value)
        self._out += data
        self._something.set()
        if len(self._out) >= FULL:
            self._room.clear()


def refuse(local: socket.socket) -> None:
    """Close so that whoever is at the other end sees a reset, and not an answer of no bytes."""
    with contextlib.suppress(OSError):
        local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    local.close()
