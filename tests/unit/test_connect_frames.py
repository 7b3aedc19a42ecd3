"""The frames of streams to published ports: an owner or an agent that breaks the protocol, or says anything at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from connect_world import PATIENCE, Published, publishing
from hypothesis import given, settings
from hypothesis import strategies as st
from messages_world import echo, read_all, serving

from vambrace.client import streams as client_streams
from vambrace.errors import DomainError, VambraceError

from vambrace_agent import ports as agent_ports  # isort: skip
from vambrace_agent import streams as agent_streams  # isort: skip


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    with publishing(tmp_path) as published:
        yield published


def frame(kind: bytes, number: int, value: int, data: bytes = b"") -> bytes:
    return client_streams.HEADER.pack(kind, number, value) + data


@pytest.mark.parametrize(
    "frames",
    [
        frame(b"d", 9, 1, b"x"),
        frame(b"c", 1, 1),
        frame(b"x", 1, 0),
        frame(b"o", 1, 1) * 2,
        frame(b"o", 1, 0) + frame(b"d", 1, 1 << 31),
        frame(b"o", 0, 1),
        b"{}\n" + bytes(7),
    ],
)
def test_an_owner_that_breaks_the_protocol_is_cut_off(published: Published, frames: bytes) -> None:
    with serving(published.port, echo):
        tunnel = published.realm.tunnel

        async def break_it() -> None:
            await (await tunnel.streams())._pipe.send(frames)

        with published.connect() as connected:
            tunnel.do(break_it())
            with contextlib.suppress(ConnectionResetError):
                read_all(connected)
        assert tunnel.cut.wait(PATIENCE)
        with published.connect() as connected:
            connected.sendall(b"x")
            assert connected.recv(1) == b"x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda number: frame(b"d", number + 1, 1, b"x"), "never opened"),
        (lambda number: frame(b"x", number, 0), "no frame"),
        (lambda number: frame(b"d", number, 1 << 20), "too long"),
        (lambda number: frame(b"d", number, 30000, bytes(30000)) * 200, "more than was asked for"),
    ],
)
def test_an_agent_that_breaks_the_protocol_is_left(
    published: Published, make: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(self: agent_streams.Streams, stream: agent_streams.Stream, data: memoryview) -> None:
        stream.credit = -(1 << 40)  # so that it does not mind how much it is given for that
        self._out += make(stream.number)  # type: ignore[operator]

    monkeypatch.setattr(agent_streams.Streams, "_give", lie)
    with serving(published.port, echo), published.connect() as connected:
        tunnel = published.realm.tunnel

        # Before the lie is asked for: after it they may be those of a new connection.
        streams = tunnel.do(tunnel.streams())

        async def running() -> VambraceError | None:
            async with asyncio.timeout(PATIENCE):
                await streams.ended.wait()
            return streams.problem

        connected.sendall(b"x")
        problem = tunnel.do(running())
        assert isinstance(problem, DomainError) and message in problem.message
        with contextlib.suppress(ConnectionResetError):
            read_all(connected)


KINDS = st.sampled_from([b"o", b"d", b"c", b"e", b"r", b"x"])
NUMBERS = st.integers(0, 3) | st.integers(0, (1 << 32) - 1)
FRAMES = st.lists(
    st.builds(lambda kind, number, value, data: (kind, number, value, data), KINDS, NUMBERS, NUMBERS, st.binary())
)


def spelled(frames: list[tuple[bytes, int, int, bytes]], *, honest: bool) -> bytes:
    """What is honest says of its data how long it is."""
    return b"".join(
        frame(kind, n, len(data) if honest and kind == b"d" else value, data) for kind, n, value, data in frames
    )


@settings(deadline=None)
@given(FRAMES | st.binary(max_size=100), st.booleans(), st.integers(1, 50))
def test_any_frames_of_an_owner(frames: list[tuple[bytes, int, int, bytes]] | bytes, honest: bool, cut: int) -> None:
    """However they are cut into pieces: refused, or answered in bounds; and nothing is connected to."""
    data = frames if isinstance(frames, bytes) else spelled(frames, honest=honest)
    agent = agent_streams.Streams(None, b"", agent_ports.Ports([]), 1 << 16)  # type: ignore[arg-type]
    with contextlib.suppress(ValueError):
        for start in range(0, len(data), cut):
            agent._in += data[start : start + cut]
            agent._parse()
    assert not agent._streams and len(agent._out) <= len(data)
    assert set(agent._out[:: agent_streams.HEADER.size]) <= set(b"r")


@settings(deadline=None)
@given(FRAMES | st.binary(max_size=100), st.booleans(), st.integers(1, 50))
def test_any_frames_of_an_agent(frames: list[tuple[bytes, int, int, bytes]] | bytes, honest: bool, cut: int) -> None:
    """Nothing but an error of ours comes of it, and no more is kept for the local side than was asked for."""
    data = frames if isinstance(frames, bytes) else spelled(frames, honest=honest)

    class Pipe:
        sent = 0

        async def receive(self) -> bytes:
            await asyncio.sleep(0)
            start, self.sent = self.sent, self.sent + cut
            return data[start : self.sent]

        async def send(self, data: bytes) -> None:
            await asyncio.sleep(0)

    async def one() -> None:
        streams = client_streams.Streams(Pipe(), 1 << 16)  # type: ignore[arg-type]
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with ours:
            stream = streams.open(5432, theirs)
            with pytest.raises(DomainError):
                await streams.run()
            assert len(stream.waiting) <= client_streams.WINDOW and not streams._streams

    asyncio.run(one())
