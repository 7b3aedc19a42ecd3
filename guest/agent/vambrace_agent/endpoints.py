"""Streams between programs of this Realm and another one's, which the monitor carries, and those to the Realm's broker
(docs/architecture.md, sections 16 and 20).

A program speaks TCP on the loopback: it connects to the agent's port of an endpoint, or the agent connects to the port
on which it serves. The other side of each stream is a vsock connection that the monitor opens, after a request of ours
where it is us who call.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable

from vambrace_agent import AgentError
from vambrace_agent.pace import Pace, accept
from vambrace_agent.settings import Endpoint

PORT = 4051
LOOPBACK = "127.0.0.1"
MAX_STREAMS = 16  # of each endpoint, as the monitor has it
CHUNK = 64 << 10
ANSWER_SECONDS = 20.0  # from a request until the monitor's connection is there
HEADER = struct.Struct(">cI")
#: Requests to the monitor: half of what it answers are left for the owner's.
RATE, BURST = 10.0, 30.0

Ask = Callable[[int, int], object]


def listen_vsock() -> socket.socket:
    """The listening socket for the monitor's connections."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen(128)
    return listener


class Endpoints:
    """Listens for every endpoint. ``ask`` requests a stream from the monitor: an endpoint's index, and our number.

    Raises ``AgentError`` where a port is taken.
    """

    def __init__(self, endpoints: list[Endpoint], listener: socket.socket, ask: Ask) -> None:
        self._endpoints = endpoints
        self._listener = listener
        self._ask = ask
        self._lock = threading.Lock()
        self._pace = Pace(RATE, BURST)
        self._number = 0
        self._open = [0] * len(endpoints)
        self._expected: dict[int, Expected] = {}
        self._doors: dict[int, tuple[int, socket.socket]] = {}
        for index, endpoint in enumerate(endpoints):
            if endpoint.role == "connect":
                try:
                    door = socket.create_server((LOOPBACK, endpoint.port), backlog=64)
                except OSError as error:
                    raise AgentError(f"endpoint {endpoint.name}: port {endpoint.port}: {error.strerror}") from None
                self._doors[door.fileno()] = (index, door)

    def start(self) -> None:
        """Serve from now on, in threads."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        self._listener.setblocking(False)
        for fd, (_, door) in self._doors.items():
            door.setblocking(False)
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                index, door = self._doors.get(fd, (-1, self._listener))
                accepted = accept(door)
                if accepted is None:
                    continue
                stream, address = accepted
                if index < 0:
                    # Nobody but the host: programs in this Realm have no vsock, and this says so once more.
                    if stream.family == socket.AF_VSOCK and address[0] != socket.VMADDR_CID_HOST:
                        stream.close()
                        continue
                    self._begin(self._answer, stream)
                elif self._take(index):
                    if not self._begin(self._call, stream, index):
                        self._give(index)
                else:
                    refuse(stream)

    def _begin(self, work: Callable[..., None], stream: socket.socket, *arguments: int) -> bool:
        stream.setblocking(True)
        try:
            threading.Thread(target=work, args=(stream, *arguments), daemon=True).start()
        except RuntimeError:  # no memory for another thread
            refuse(stream)
            return False
        return True

    def _take(self, index: int) -> bool:
        with self._lock:
            room = self._open[index] < MAX_STREAMS
            self._open[index] += room
            return room

    def _give(self, index: int) -> None:
        with self._lock:
            self._open[index] -= 1

    def dial(self, ask: Callable[[int], object]) -> socket.socket:
        """A stream that the monitor opens when it is asked by ``ask`` with our number for it. Raises ``OSError``."""
        with self._lock:
            self._number = number = (self._number + 1) % (1 << 32)
            expected = self._expected[number] = Expected()
        seconds = ANSWER_SECONDS
        try:
            self._pace.wait()
            ask(number)
        except (AgentError, OSError):
            seconds = 0.0
        monitor = expected.wait(seconds)
        with self._lock:
            self._expected.pop(number, None)
        if monitor is None:
            raise OSError("the monitor opens no stream")
        return monitor

    def _call(self, program: socket.socket, index: int) -> None:
        """A program has connected: have the monitor open the other side. Holds one of the endpoint's places."""
        try:
            monitor = self.dial(lambda number: self._ask(index, number))
        except OSError:
            refuse(program)
        else:
            join(program, monitor)
        finally:
            self._give(index)

    def _answer(self, monitor: socket.socket) -> None:
        """The monitor has connected: it is the stream that we asked for, or one for a program that serves."""
        try:
            kind, number = HEADER.unpack(_exactly(monitor, HEADER.size))
        except (OSError, struct.error):
            monitor.close()
            return
        if kind == b"c":
            with self._lock:
                expected = self._expected.pop(number, None)
            if expected is None or not expected.give(monitor):
                monitor.close()
            return
        if kind != b"o" or number >= len(self._endpoints) or self._endpoints[number].role != "offer":
            monitor.close()
            return
        if not self._take(number):
            monitor.close()
            return
        try:
            program = socket.create_connection((LOOPBACK, self._endpoints[number].port), ANSWER_SECONDS)
            program.settimeout(None)
            join(program, monitor)
        except OSError:  # nobody serves there (yet)
            monitor.close()
        finally:
            self._give(number)


class Expected:
    """A stream that the monitor was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._stream: socket.socket | None = None
        self._late = False

    def give(self, stream: socket.socket) -> bool:
        """Whether somebody still waits for it."""
        with self._lock:
            if self._late:
                return False
            self._stream = stream
            self._event.set()
            return True

    def wait(self, seconds: float) -> socket.socket | None:
        """The stream, if it comes in time; once it was waited for, nobody does any more."""
        self._event.wait(seconds)
        with self._lock:
            self._late = True
            return self._stream


def refuse(program: socket.socket) -> None:
    """Close so that the program sees a reset, and not an answer of no bytes."""
    with contextlib.suppress(OSError):
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    program.close()


def join(program: socket.socket, monitor: socket.socket) -> None:
    """Copy both ways until both have ended, then close both."""
    with program, monitor:
        with contextlib.suppress(OSError):
            program.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outwards = threading.Thread(target=pump, args=(program, monitor), daemon=True)
        outwards.start()
        pump(monitor, program)
        outwards.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until ``source`` ends or either fails, then end this direction at both; the other one may go on."""
    view = memoryview(bytearray(CHUNK))
    try:
        while length := source.recv_into(view):
            target.sendall(view[:length])
    except OSError:
        pass
    for stream, way in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            stream.shutdown(way)


def _exactly(stream: socket.socket, length: int) -> bytes:
    """So many bytes, or fewer where the stream ends or takes too long."""
    stream.settimeout(ANSWER_SECONDS)
    data = b""
    while len(data) < length and (more := stream.recv(length - len(data))):
        data += more
    stream.settimeout(None)
    return data
