"""Realms that exchange messages: the daemon's side and real agents, on this machine.

In place of vsock, which needs a guest, an agent listens on a Unix socket; the programs speak TCP, as in a Realm.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from config_factory import make_certificate, make_realm
from vambrace_agent import AgentError, endpoints
from vambrace_agent import settings as agent_settings

from vambrace.certificate import owner_public_key, personalization
from vambrace.config import Endpoint
from vambrace.errors import VambraceError
from vambrace.host.lifecycle import Lifecycle, State
from vambrace.host.messages import Messages
from vambrace.host.store import DomainRecord
from vambrace.host.vsock import MESSAGE_PORT

RATE = 1 << 30
PATIENCE = 60.0

T = TypeVar("T")


@functools.cache
def certificate(owner: str) -> str:
    return make_certificate()[0]


def identity(owner: str) -> str:
    """What an endpoint calls the owner of this name."""
    return personalization(owner_public_key(certificate(owner))).hex()


def offer(name: str, port: int, owner: str, realm: str = "", measurement: str = "") -> Endpoint:
    return Endpoint(name, "offer", port, identity(owner), realm, measurement)


def connect(name: str, port: int, owner: str, realm: str = "", measurement: str = "") -> Endpoint:
    return Endpoint(name, "connect", port, identity(owner), realm, measurement)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Realm:
    """A Realm as the daemon has it. Its agent is at ``path``, real unless the test listens there itself."""

    def __init__(self, number: int, folder: Path, owner: str, name: str, wanted: tuple[Endpoint, ...]) -> None:
        self.cid = number
        self.path = folder / f"agent-{number}"
        self.config = make_realm(name=name, owner=certificate(owner), endpoints=wanted)
        self.record = DomainRecord(f"uuid-{number}", f"called-{number}", "", "", 0.0, measurement=f"{number:064x}")
        self.lifecycle = Lifecycle(State.RUNNING)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.listener.settimeout(PATIENCE)

    def accept(self) -> socket.socket:
        """For an agent of the test's: the next stream from the daemon."""
        stream, _ = self.listener.accept()
        stream.settimeout(PATIENCE)
        return stream


class World:
    """The daemon's ``Messages`` in a thread of their own, and the living Realms."""

    def __init__(self, folder: Path, rate: int = RATE) -> None:
        self.folder = folder
        self.realms: list[Realm] = []
        self.loop = asyncio.new_event_loop()
        self.messages = Messages(lambda: self.realms, self._connect, rate)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> World:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self.messages.close(), self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)

    def realm(self, owner: str, name: str, *wanted: Endpoint, agent: bool = True) -> Realm:
        realm = Realm(len(self.realms) + 3, self.folder, owner, name, wanted)
        self.realms.append(realm)
        if agent:
            fields = [{"name": one.name, "role": one.role, "port": one.port} for one in wanted]
            ask = functools.partial(self.ask, realm)
            endpoints.Endpoints([agent_settings.Endpoint(one) for one in fields], realm.listener, ask).start()
        return realm

    def ask(self, realm: Realm, index: int, number: int) -> None:
        """As an agent, over the monitor's port."""
        try:
            self.do(lambda: self.messages.open(realm, index, number))
        except VambraceError as error:
            raise AgentError(error.message) from None

    def do(self, work: Callable[[], T]) -> T:
        """``work`` in the daemon's thread."""

        async def inside() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(PATIENCE)

    def counts(self, realm: Realm) -> list[dict[str, Any]]:
        return self.do(lambda: self.messages.counts(realm))

    def pair(self, realm: Realm) -> dict[str, Any]:
        """The counts of a Realm that has one endpoint with one peer, once there was a stream."""
        assert eventually(lambda: len(self.counts(realm)) == 2)
        return self.counts(realm)[1]

    def leave(self, realm: Realm) -> None:
        """The Realm ends, as ``vambrace.host.realm`` has it."""
        self.realms.remove(realm)
        realm.lifecycle.move(State.DESTROYING)
        self.do(lambda: self.messages.leave(realm))

    async def _connect(self, cid: int, port: int) -> socket.socket:
        assert port == MESSAGE_PORT
        realm = next((realm for realm in self.realms if realm.cid == cid), None)
        if realm is None:
            raise ConnectionResetError
        stream = socket.socket(socket.AF_UNIX)
        stream.setblocking(False)
        try:
            await self.loop.sock_connect(stream, str(realm.path))
        except BaseException:
            stream.close()
            raise
        return stream


class Server:
    """A program that serves: each connection is ``work``'s, in a thread."""

    def __init__(self, port: int, work: Callable[[socket.socket], object]) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self._work = work
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            stream.settimeout(PATIENCE)
            threading.Thread(target=self._one, args=(stream,), daemon=True).start()

    def _one(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            self._work(stream)


@contextlib.contextmanager
def serving(port: int, work: Callable[[socket.socket], object]) -> Iterator[None]:
    server = Server(port, work)
    try:
        yield
    finally:
        # Closing alone does not wake who accepts.
        with contextlib.suppress(OSError):
            server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()


def dial(port: int) -> socket.socket:
    """As a program that connects."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def reset(port: int) -> bool:
    """Whether a program that connects gets a reset and nothing else, maybe before it knows that it is connected."""
    try:
        with dial(port) as program:
            program.sendall(b"let me in")
            program.recv(1)
            return False
    except (ConnectionResetError, BrokenPipeError):
        return True


def read_all(stream: socket.socket) -> bytes:
    data = bytearray()
    while more := stream.recv(1 << 16):
        data += more
    return bytes(data)


def echo(stream: socket.socket) -> None:
    while data := stream.recv(1 << 16):
        stream.sendall(data)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Two:
    """Realms of two owners: ``caller`` reaches at ``near`` what a program of ``offerer`` serves at ``far``."""

    def __init__(self, world: World, name: str = "records", **agents: bool) -> None:
        self.near, self.far = free_port(), free_port()
        self.offerer = world.realm(
            "bob", "registry", offer(name, self.far, "alice", "ward"), agent=agents.get("offerer", True)
        )
        self.caller = world.realm(
            "alice", "ward", connect(name, self.near, "bob", "registry"), agent=agents.get("caller", True)
        )
