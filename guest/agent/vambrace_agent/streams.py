"""Many TCP streams to published ports, over one connection of the owner's (docs/architecture.md, section 7).

Both sides send frames: a letter, a stream's number, a value, and of ``d`` so many bytes. One thread serves all streams
of a connection and never waits for one of them: what a program does not take is kept, up to the window that the other
side was promised, and what the owner does not take stays with the program.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
from collections.abc import Iterator

from vambrace_agent.endpoints import LOOPBACK, refuse
from vambrace_agent.ports import Listener, Ports

HEADER = struct.Struct(">cII")
CHUNK = (32 << 10) - HEADER.size  # of one frame: with its header two records of TLS
WINDOW = 256 << 10  # bytes of one stream that may wait here for its program
MAX_WINDOW = 16 << 20  # that the owner may ask for
MAX_STREAMS = 128
#: What may wait for the owner before programs are not read any more.
FULL = 256 << 10
STUCK = 4 * FULL  # nor the owner, who then takes nothing
READS = 16  # records of TLS in one turn: programs have theirs, too
OPEN, DATA, CREDIT, END, RESET = b"o", b"d", b"c", b"e", b"r"
#: Why a stream was reset.
CUT, NOT_PUBLISHED, NOT_SERVED, TOO_MANY = range(4)


class Stream:
    """One connection to a program."""

    def __init__(self, number: int, port: int, credit: int) -> None:
        self.number, self.port = number, port
        self.listeners: set[Listener] = set()  # before it was connected
        self.credit = credit  # bytes that the owner still takes
        self.connected = False
        self.waiting = bytearray()  # for the program
        self.taken = 0  # by the program, and not yet credited
        self.owner_ended = self.program_ended = False
        self.program = socket.socket()
        self.program.setblocking(False)


class Streams:
    """Serves one connection. ``unread`` came with the request for it; ``window`` is what the owner takes of a stream.

    ``serve`` raises ``OSError`` and ``ValueError``: the connection is over, or what comes is no protocol.
    """

    def __init__(self, tls: ssl.SSLSocket, unread: bytes, ports: Ports, window: int) -> None:
        self._tls, self._ports, self._window = tls, ports, window
        self._in, self._out = bytearray(unread), bytearray()
        self._streams: dict[int, Stream] = {}
        self._by_fd: dict[int, Stream] = {}
        self._opened: list[Stream] = []  # in this turn, and not connected yet
        self._arrived: list[Stream] = []  # connected in this turn, to whom is not known yet
        self._last = 0
        self._over = False

    def serve(self) -> None:
        """Until the owner ends the connection."""
        self._tls.setblocking(False)
        try:
            self._parse()
            self._look()
            while not self._over:
                self._turn()
        finally:
            for stream in self._streams.values():
                refuse(stream.program)

    def _turn(self) -> None:
        """Wait until something can be done, and do it."""
        poll = select.poll()
        door = self._tls.fileno()
        readable = select.POLLIN if len(self._out) < STUCK else 0
        poll.register(door, readable | (select.POLLOUT if self._out else 0))
        room = len(self._out) < FULL
        watched = self._by_fd
        for fd, stream in watched.items():
            if events := _wanted(stream, room):
                poll.register(fd, events)
        for fd, events in poll.poll():
            if fd == door:
                if events & ~select.POLLOUT:
                    self._receive()
            elif self._streams.get(watched[fd].number) is watched[fd]:  # else a frame of this turn has ended it
                self._serve_program(watched[fd], events)
        self._look()
        self._send()

    # The owner's side

    def _receive(self) -> None:
        for _ in range(READS):
            try:
                data = self._tls.recv(CHUNK)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                self._over = True
                return
            self._in += data
            self._parse()

    def _parse(self) -> None:
        """Every whole frame that is there."""
        place, have = 0, len(self._in)
        with memoryview(self._in) as view:
            while have - place >= HEADER.size:
                kind, number, value = HEADER.unpack_from(view, place)
                length = value if kind == DATA else 0
                if length > CHUNK:
                    raise ValueError("a frame is too long")
                if have - place < HEADER.size + length:
                    break
                place += HEADER.size
                self._frame(kind, number, value, view[place : place + length])
                place += length
        del self._in[:place]

    def _frame(self, kind: bytes, number: int, value: int, data: memoryview) -> None:
        if kind == OPEN:
            self._open(number, value)
            return
        if number > self._last:
            raise ValueError("a stream that was never opened")
        stream = self._streams.get(number)
        if stream is None:
            return  # it has ended here, which the owner could not know
        if kind == DATA and not stream.owner_ended:
            if len(stream.waiting) + stream.taken + len(data) > WINDOW:
                raise ValueError("more than the window")
            self._give(stream, data)
        elif kind == CREDIT:
            stream.credit += value
            if stream.credit > self._window:
                raise ValueError("more credit than the window")
        elif kind == END and not stream.owner_ended:
            stream.owner_ended = True
            self._give(stream, data)
        elif kind == RESET:
            self._forget(stream)
        else:
            raise ValueError("no frame of a stream")

    def _open(self, number: int, port: int) -> None:
        if number <= self._last:
            raise ValueError("a stream is opened twice")
        self._last = number
        if port not in self._ports:
            self._tell(RESET, number, NOT_PUBLISHED)
            return
        if len(self._streams) >= MAX_STREAMS:
            self._tell(RESET, number, TOO_MANY)
            return
        stream = Stream(number, port, self._window)
        self._streams[number] = stream
        self._opened.append(stream)
        self._index()

    # The programs' side

    def _look(self) -> None:
        """Who listens now: one look for all streams of this turn, those to be connected and those that were.

        A stream is connected to one of the sockets that listened before and after: they are the application's.
        """
        both = (self._opened, self._arrived)
        opened, arrived = ([one for one in new if one.number in self._streams] for new in both)
        self._opened, self._arrived = [], []
        if not opened and not arrived:
            return
        found = self._ports.served({stream.port for stream in (*opened, *arrived)})
        for stream in arrived:
            if found[stream.port] == stream.listeners:
                self._welcome(stream)
            else:
                self._reset(stream, NOT_SERVED)
        for stream in opened:
            stream.listeners = found[stream.port]
            code = stream.program.connect_ex((LOOPBACK, stream.port)) if stream.listeners else errno.ECONNREFUSED
            if code not in (0, errno.EINPROGRESS):
                self._reset(stream, NOT_SERVED)

    def _welcome(self, stream: Stream) -> None:
        with self._program(stream):
            stream.program.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.connected = True
            self._tell(OPEN, stream.number)
            self._drain(stream)

    @contextlib.contextmanager
    def _program(self, stream: Stream) -> Iterator[None]:
        """What becomes of a stream whose program's side fails meanwhile."""
        try:
            yield
        except BlockingIOError:
            pass
        except OSError:
            self._reset(stream, CUT)

    def _serve_program(self, stream: Stream, events: int) -> None:
        with self._program(stream):
            if not stream.connected:
                if stream.program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._reset(stream, NOT_SERVED)
                else:
                    self._arrived.append(stream)
                return
            if events & select.POLLOUT:
                self._drain(stream)
            if events & ~select.POLLOUT and not stream.program_ended:
                self._take(stream)

    def _take(self, stream: Stream) -> None:
        """Bytes from the program to the owner."""
        if not stream.credit:
            # Nothing is read, and yet there is an event: the connection is broken.
            raise ConnectionResetError
        if len(self._out) >= FULL:
            return
        data = stream.program.recv(min(CHUNK, stream.credit))
        if data:
            stream.credit -= len(data)
            self._tell(DATA, stream.number, len(data))
            self._out += data
        else:
            stream.program_ended = True
            self._tell(END, stream.number)
            self._settle(stream)

    def _give(self, stream: Stream, data: memoryview) -> None:
        """Bytes, or the end, from the owner to the program: at once if it takes them."""
        sent = 0
        try:
            if data and stream.connected and not stream.waiting:
                sent = stream.program.send(data)
        except BlockingIOError:
            pass
        except OSError:
            self._reset(stream, CUT)
            return
        stream.waiting += data[sent:]
        self._took(stream, sent)

    def _drain(self, stream: Stream) -> None:
        """What waits for the program."""
        sent = 0
        if stream.waiting:
            sent = stream.program.send(stream.waiting)
            del stream.waiting[:sent]
        self._took(stream, sent)

    def _took(self, stream: Stream, count: int) -> None:
        """The program has taken so many bytes: the owner may send as many again, and its end is passed on."""
        stream.taken += count
        if stream.owner_ended:
            if stream.connected and not stream.waiting:
                with contextlib.suppress(OSError):
                    stream.program.shutdown(socket.SHUT_WR)
                self._settle(stream)
        elif stream.taken >= WINDOW // 4:
            self._tell(CREDIT, stream.number, stream.taken)
            stream.taken = 0

    def _settle(self, stream: Stream) -> None:
        """Close what has ended in both directions."""
        if stream.owner_ended and stream.program_ended and not stream.waiting:
            stream.program.close()
            self._drop(stream)

    def _reset(self, stream: Stream, reason: int) -> None:
        self._tell(RESET, stream.number, reason)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self._drop(stream)
        refuse(stream.program)

    def _drop(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self._index()

    def _index(self) -> None:
        self._by_fd = {one.program.fileno(): one for one in self._streams.values()}

    # Towards the owner

    def _tell(self, kind: bytes, number: int, value: int = 0) -> None:
        self._out += HEADER.pack(kind, number, value)

    def _send(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while self._out:
                sent = self._tls.send(self._out[:CHUNK])
                del self._out[:sent]


def _wanted(stream: Stream, room: bool) -> int:
    """The events of a program that somebody waits for."""
    if not stream.connected:
        return select.POLLOUT
    events = select.POLLOUT if stream.waiting else 0
    if not stream.program_ended and stream.credit and room:
        events |= select.POLLIN
    return events
