"""Messages between Realms: who may, what arrives, and what a hostile side can do to the others."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages_world import (
    PATIENCE,
    Two,
    World,
    connect,
    dial,
    echo,
    endpoints,
    eventually,
    free_port,
    offer,
    read_all,
    reset,
    serving,
)

from vambrace.host import __main__ as daemon
from vambrace.host import messages
from vambrace.host.agent import Bucket
from vambrace.host.messages import GRAIN, STREAMS, Messages, Pair
from vambrace.host.relay import CHUNK, UNSENT, pump, unsent


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


# --- what arrives -------------------------------------------------------------------------------------------


def test_ordinary_programs(world: World, tmp_path: Path) -> None:
    """Python's web server in one Realm, urllib in the other; neither knows."""
    two = Two(world)
    content = random.Random(1).randbytes(3 << 20)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/data").write_bytes(content)
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(two.far)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=tmp_path / "www", **quiet) as server:  # type: ignore[call-overload]
        try:
            found = b""
            deadline = time.monotonic() + PATIENCE
            while not found and time.monotonic() < deadline:
                try:  # until the server listens, its Realm's agent finds nobody
                    with urllib.request.urlopen(f"http://127.0.0.1:{two.near}/data", timeout=PATIENCE) as answer:
                        found = answer.read()
                except OSError:
                    time.sleep(0.1)
        finally:
            server.kill()
    assert found == content
    assert world.pair(two.caller)["received"] > len(content)


def random_pieces(stream: socket.socket, data: bytes, seed: int) -> None:
    choose = random.Random(seed)
    while data:
        size = choose.choice((1, 100, 4096, 70_000, 1 << 20))
        stream.sendall(data[:size])
        data = data[size:]


SIZES = st.one_of(st.integers(0, 3), st.integers(0, 300_000), st.integers(0, 3 << 20))


@given(sizes=st.tuples(SIZES, SIZES), seed=st.integers(0, 1 << 20), cut=st.none() | st.integers(0, 300_000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_integrity(tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, int], seed: int,
                             cut: int | None) -> None:  # fmt: skip
    """Both directions at once, each ended by itself. Cut off at any place, what arrived is a beginning of what went."""
    up, down = (random.Random(seed + way).randbytes(size) for way, size in enumerate(sizes))
    got: list[bytes] = []

    def serve(stream: socket.socket) -> None:
        writer = threading.Thread(target=answer, args=(stream,))
        writer.start()
        try:
            received = bytearray()
            while more := stream.recv(1 << 16):
                received += more
        except OSError:
            pass
        got.append(bytes(received))
        writer.join()

    def answer(stream: socket.socket) -> None:
        try:
            random_pieces(stream, down, seed)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    with World(tmp_path_factory.mktemp("world")) as world:
        two = Two(world)
        with serving(two.far, serve), dial(two.near) as program:
            back = bytearray()

            def read() -> None:
                try:
                    while more := program.recv(1 << 16):
                        back.extend(more)
                except OSError:
                    pass

            reader = threading.Thread(target=read)
            reader.start()
            if cut is None:
                random_pieces(program, up, seed)
                program.shutdown(socket.SHUT_WR)
                reader.join(PATIENCE)
                assert eventually(lambda: bool(got))
                assert (got[0], bytes(back)) == (up, down)
                assert eventually(lambda: world.pair(two.caller)["open"] == 0)
                counts = world.pair(two.caller)
                assert (counts["sent"], counts["received"]) == sizes
            else:
                random_pieces(program, up[:cut], seed)
                program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                program.shutdown(socket.SHUT_RDWR)
                reader.join(PATIENCE)
                program.close()
                assert eventually(lambda: bool(got))
                assert up.startswith(got[0])
                assert down.startswith(bytes(back))
                assert eventually(lambda: world.pair(two.caller)["open"] == 0)


def test_half_closed(world: World) -> None:
    """An answer that is given only when the question has ended arrives whole."""
    two = Two(world)
    with serving(two.far, lambda stream: stream.sendall(read_all(stream)[::-1])), dial(two.near) as program:
        program.sendall(b"abc" * 100_000)
        program.shutdown(socket.SHUT_WR)
        assert read_all(program) == b"cba" * 100_000


def test_an_answer_before_the_question_has_ended(world: World) -> None:
    """A server that says no and closes at once: what it said arrives, though the caller is still sending."""
    two = Two(world)
    with serving(two.far, lambda stream: stream.sendall(b"no")), dial(two.near) as program:
        assert program.recv(2) == b"no"


def test_nobody_serves(world: World) -> None:
    two = Two(world)
    with dial(two.near) as program:
        assert program.recv(1) == b""
    assert eventually(lambda: world.pair(two.caller)["open"] == 0)


# --- hostile sides --------------------------------------------------------------------------------------------


def flood(stream: socket.socket, seconds: float = 1.0) -> int:
    """Send until nothing has been taken for ``seconds``; returns how many bytes were."""
    sent, block = 0, bytes(1 << 16)
    stream.settimeout(seconds)
    try:
        while True:
            sent += stream.send(block)
    except OSError:
        return sent


def test_who_never_reads(world: World) -> None:
    """Backpressure reaches the sender after bounded buffers, and another pair of Realms goes on undisturbed."""
    two, others = Two(world), Two(world, "other")
    release = threading.Event()
    with (
        serving(two.far, lambda stream: release.wait(PATIENCE)),
        serving(others.far, echo),
        dial(two.near) as program,
    ):
        sent = flood(program)
        pair = world.pair(two.caller)
        assert sent < 32 << 20  # the buffers of two TCP connections mostly: Linux lets them grow to megabytes
        with dial(others.near) as other:
            other.sendall(b"x" * 1000)
            other.shutdown(socket.SHUT_WR)
            assert read_all(other) == b"x" * 1000
        assert world.pair(two.caller)["sent"] == pair["sent"]
        release.set()


@pytest.mark.parametrize("moment", ["at once", "after the header", "after some bytes", "between two others"])
@pytest.mark.parametrize("which", ["caller", "offerer"])
def test_an_agent_that_goes_at_every_moment(world: World, which: str, moment: str) -> None:
    two = Two(world, caller=which != "caller", offerer=which != "offerer")
    hostile = getattr(two, which)

    def misbehave() -> None:
        stream = hostile.accept()
        if moment != "at once":
            assert len(stream.recv(5)) == 5
        if moment == "after some bytes":
            stream.sendall(b"some")
        if moment == "between two others":
            if which == "caller":  # the other side has nothing to say first
                stream.sendall(bytes(1000))
            stream.recv(100)
        stream.close()

    with serving(two.far, echo):
        for number in range(3):
            thread = threading.Thread(target=misbehave)
            thread.start()
            if which == "caller":
                world.ask(two.caller, 0, number)
            else:
                with dial(two.near) as program:
                    flood(program, 0.2)
            thread.join(PATIENCE)
            assert eventually(lambda: not any(row["open"] for row in world.counts(two.caller)))


def test_an_agent_that_takes_no_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon gives up, the caller sees the end, and it counts as refused."""
    two = Two(world)
    two.offerer.path.unlink()
    with dial(two.near) as program:
        assert program.recv(1) == b""
    assert eventually(lambda: world.pair(two.caller)["refused"] == 1)
    assert world.pair(two.caller)["connections"] == 0


def test_streams_are_bounded(world: World) -> None:
    """Of each endpoint; another endpoint of the same Realms is as free as before."""
    near, far, ports = free_port(), free_port(), (free_port(), free_port())
    names = ("records", "other")
    world.realm("bob", "registry", *(offer(name, port, "alice") for name, port in zip(names, ports, strict=True)))
    caller = world.realm("alice", "ward", connect("records", near, "bob"), connect("other", far, "bob"))
    with serving(ports[0], echo), serving(ports[1], echo):
        programs = [dial(near) for _ in range(STREAMS)]
        for program in programs:
            program.sendall(b"x")
            assert program.recv(1) == b"x"
        # Its own agent refuses one more; another agent than ours would be refused by the daemon.
        assert reset(near)
        with pytest.raises(endpoints.AgentError, match="16 streams already"):
            world.ask(caller, 0, 99)
        with dial(far) as free:
            free.sendall(b"y")
            assert free.recv(1) == b"y"
        for program in programs:
            program.close()
        assert eventually(lambda: not any(row["open"] for row in world.counts(caller)))
        with dial(near) as again:
            again.sendall(b"z")
            assert again.recv(1) == b"z"
    assert [row["refused"] for row in world.counts(caller)] == [0, 1, 0, 0]


def test_the_rate_is_a_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many streams they use; small pieces cost as much as larger ones."""
    monkeypatch.setattr(messages, "BURST", 256 << 10)
    with World(tmp_path, rate=2 << 20) as world:
        two = Two(world)
        with serving(two.far, read_all):
            begin = time.monotonic()
            programs = [dial(two.near) for _ in range(4)]
            for program in programs:
                threading.Thread(target=program.sendall, args=(bytes(256 << 10),), daemon=True).start()
            assert eventually(lambda: world.pair(two.caller)["sent"] == 1 << 20)
            took = time.monotonic() - begin
            assert took >= (1024 - 256) / 2048 * 0.95
            for program in programs:
                program.close()


def test_the_loop_stays_free(world: World) -> None:
    """While Realms exchange all that they can, what else the daemon does has its turn."""
    pairs = [Two(world, f"e{number}") for number in range(3)]
    stop = threading.Event()

    async def watch() -> float:
        worst = 0.0  # of the loop's own time: that in which the machine does something else says nothing
        while not stop.is_set():
            before = time.thread_time()
            await asyncio.sleep(0.001)
            worst = max(worst, time.thread_time() - before)
        return worst

    def send(program: socket.socket) -> None:
        try:
            while not stop.is_set():
                program.sendall(bytes(1 << 20))
        except OSError:
            pass

    def drain(stream: socket.socket) -> None:
        view = bytearray(1 << 18)
        while stream.recv_into(view):
            pass

    with contextlib.ExitStack() as stack:
        for two in pairs:
            stack.enter_context(serving(two.far, drain))
            for _ in range(4):
                program = stack.enter_context(dial(two.near))
                threading.Thread(target=send, args=(program,), daemon=True).start()
        assert eventually(lambda: all(world.pair(two.caller)["sent"] > 8 << 20 for two in pairs))
        watching = asyncio.run_coroutine_threadsafe(watch(), world.loop)
        time.sleep(1)
        stop.set()
        assert watching.result(PATIENCE) < 0.5


def test_a_realm_ends(world: World) -> None:
    """Its streams are cut, its peers learn it, and what they exchanged stays counted for the one that lives."""
    two = Two(world)
    with serving(two.far, echo), dial(two.near) as program:
        program.sendall(b"abc")
        assert program.recv(10) == b"abc"
        world.leave(two.offerer)
        assert program.recv(1) == b""
        (row,) = world.counts(two.caller)
        assert row == {"endpoint": "records", "role": "connect", "peer": None, "open": 0} | {
            "connections": 1,
            "refused": 0,
            "sent": 3,
            "received": 3,
        }


# --- what is shown --------------------------------------------------------------------------------------------


def test_what_the_operator_sees(world: World) -> None:
    """By the operator's own names, bytes in steps, and only as of the last time that it was published."""
    two = Two(world)
    stranger = world.realm("mallory", "ward", connect("records", free_port(), "bob"))
    with pytest.raises(endpoints.AgentError):
        world.ask(stranger, 0, 1)
    with serving(two.far, read_all), dial(two.near) as program:
        program.sendall(bytes(3 << 20))
        assert eventually(lambda: world.pair(two.caller)["sent"] == 3 << 20)
    assert world.messages.published.pairs == ()
    world.do(world.messages.publish)
    (pair,) = world.messages.published.pairs
    assert (pair.caller, pair.offerer, pair.endpoint) == ("called-4", "called-3", "records")
    assert (pair.connections, pair.refused, pair.downwards) == (1, 0, 0)
    assert pair.upwards % GRAIN == 0 and 2 * GRAIN <= pair.upwards <= 4 * GRAIN
    assert world.messages.published.refused == (("called-5", 1),)


# --- parts ----------------------------------------------------------------------------------------------------


def test_a_guest_that_takes_more_than_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel would queue for it is bounded by us, and nothing of it is lost."""
    monkeypatch.setattr(messages, "UNSENT", 64 << 10)
    content = random.Random(2).randbytes(8 << 20)

    async def body() -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            target = socket.create_connection(listener.getsockname())
            target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 20)
            guest, _ = listener.accept()
        source, feeder = socket.socketpair()
        for stream in (target, source, feeder, guest):
            stream.setblocking(False)
        done = [0]

        def count(length: int) -> None:
            done[0] += length

        feeding = asyncio.create_task(loop.sock_sendall(feeder, content))
        pumping = asyncio.create_task(pump(source, target, Bucket(1 << 30, 4 << 20), count))
        await asyncio.sleep(0.5)
        assert unsent(target) <= UNSENT + CHUNK
        held = done[0]
        received = bytearray()
        while len(received) < len(content):
            received += await loop.sock_recv(guest, 1 << 20)
        await feeding
        feeder.close()
        await asyncio.wait_for(pumping, PATIENCE)
        assert await loop.sock_recv(guest, 1) == b""
        for stream in (target, source, guest):
            stream.close()
        return held, bytes(received)

    held, received = asyncio.run(body())
    assert 0 < held < 4 << 20
    assert received == content


def test_descriptors_for_many_streams() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        daemon.allow_descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(max(before[0], daemon.DESCRIPTORS), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_pair_is_of_its_two_realms(world: World) -> None:
    two = Two(world, caller=False, offerer=False)
    pair = Pair(two.caller, 0, two.offerer, 0, Bucket(1, 1))
    assert (pair.side(two.caller), pair.side(two.offerer)) == (0, 0)
    assert pair.side(world.realm("alice", "ward", agent=False)) is None
    assert Messages(list, world._connect, 1).published.pairs == ()
