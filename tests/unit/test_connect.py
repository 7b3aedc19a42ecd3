"""Published ports of a Realm: real agent, real TLS, programs and clients on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from connect_world import PATIENCE, Published, publishing
from messages_world import dial, echo, eventually, free_port, read_all, serving

from vambrace.cli.main import main
from vambrace.client import streams as client_streams
from vambrace.client.tunnel import pair
from vambrace.errors import ChallengeMismatch, Conflict, DomainError, UsageError

from vambrace_agent import ports as agent_ports  # isort: skip
from vambrace_agent import streams as agent_streams  # isort: skip


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    with publishing(tmp_path) as published:
        yield published


# Bytes


def test_bytes_both_ways_and_ends(published: Published) -> None:
    """Each direction ends by itself: the program answers after it has seen the client's end."""

    def work(stream: socket.socket) -> None:
        data = read_all(stream)
        stream.sendall(hashlib.sha256(data).digest() + data[::-1])

    data = os.urandom(3 << 20)
    with serving(published.port, work), published.connect() as connected:
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
        answer = read_all(connected)
    assert answer == hashlib.sha256(data).digest() + data[::-1]


def test_the_program_ends_first(published: Published) -> None:
    heard: list[bytes] = []

    def work(stream: socket.socket) -> None:
        stream.sendall(b"that is all")
        stream.shutdown(socket.SHUT_WR)
        heard.append(read_all(stream))

    with serving(published.port, work):
        with published.connect() as connected:
            assert read_all(connected) == b"that is all"
            connected.sendall(b"x" * (2 << 20))
        assert eventually(lambda: [len(said) for said in heard] == [2 << 20])


def test_many_at_once(published: Published) -> None:
    """One connection carries all of them, and each has its own bytes."""
    count = 100

    def talk(number: int) -> None:
        with published.connect() as connected:
            for round_ in range(3):
                said = f"{number}/{round_}".encode() * 1000
                connected.sendall(said)
                got = b""
                while len(got) < len(said):
                    got += connected.recv(1 << 16)
                assert got == said
            done.append(number)

    done: list[int] = []
    with serving(published.port, echo):
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(done) == list(range(count))
    assert published.world.record.channels == 2, "the channel of 'start', and one for all streams"


def test_who_does_not_read_is_waited_for(published: Published) -> None:
    """The writer of a stream is stopped after a bounded amount, on either side, and other streams go on."""
    sent: list[int] = []
    go_on = threading.Event()

    def flood(stream: socket.socket) -> None:
        kind = stream.recv(1)
        if kind == b"e":
            echo(stream)
        elif kind == b"r":
            go_on.wait(PATIENCE)
            stream.sendall(str(len(read_all(stream))).encode())
        else:
            stream.settimeout(None)
            total = 0
            with contextlib.suppress(OSError):
                while total < 64 << 20:
                    total += stream.send(bytes(1 << 16))
                    sent.append(total)

    with serving(published.port, flood), contextlib.ExitStack() as stack:
        lazy = stack.enter_context(published.connect())
        lazy.sendall(b"w")
        stuffed = stack.enter_context(published.connect())
        stuffed.sendall(b"r")
        stuffed.setblocking(False)
        pushed = 0
        for _ in range(200):
            with contextlib.suppress(BlockingIOError):
                pushed += stuffed.send(bytes(1 << 16))
            time.sleep(0.005)
        assert eventually(lambda: bool(sent))
        before = -1
        while before != sent[-1]:
            before = sent[-1]
            time.sleep(0.5)
        bound = client_streams.WINDOW + agent_streams.WINDOW + (24 << 20)  # kernels' buffers of four sockets
        assert before < bound and pushed < bound

        lively = stack.enter_context(published.connect())
        lively.sendall(b"ehello")
        assert lively.recv(5) == b"hello"

        go_on.set()
        stuffed.setblocking(True)
        stuffed.settimeout(PATIENCE)
        stuffed.shutdown(socket.SHUT_WR)
        assert int(read_all(stuffed)) == pushed
        assert lazy.recv(1) == b"\0"


# Ends that are none


def test_a_program_that_breaks_is_a_reset(published: Published) -> None:
    def work(stream: socket.socket) -> None:
        stream.recv(1)
        agent_streams.refuse(stream)

    with serving(published.port, work), published.connect() as connected:
        connected.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(connected)


def test_a_client_that_breaks_is_a_reset(published: Published) -> None:
    seen: list[str] = []

    def work(stream: socket.socket) -> None:
        try:
            seen.append(repr(read_all(stream)))
        except ConnectionResetError:
            seen.append("reset")

    with serving(published.port, work):
        connected = published.connect()
        connected.sendall(b"begin")
        client_streams.refuse(connected)
        assert eventually(lambda: seen == ["reset"])


def test_a_connection_that_is_cut_is_a_reset_and_the_next_one_works(published: Published) -> None:
    with serving(published.port, echo):
        with published.connect() as connected:
            connected.sendall(b"x")
            assert connected.recv(1) == b"x"
            published.world.host.cut(published.world.record)
            with pytest.raises(ConnectionResetError):
                read_all(connected)
        assert published.realm.tunnel.cut.wait(PATIENCE)
        with published.connect() as connected:
            connected.sendall(b"y")
            assert connected.recv(1) == b"y"
    assert published.world.record.channels >= 3


def test_closing_cuts(published: Published) -> None:
    with serving(published.port, echo), published.connect() as connected:
        connected.sendall(b"x")
        assert connected.recv(1) == b"x"
        published.realm.close()
        with pytest.raises(ConnectionResetError):
            read_all(connected)


# Who may, and where to


def test_only_what_is_published(published: Published) -> None:
    with serving(free := free_port(), echo):
        with pytest.raises(UsageError, match=f"port {free} is not published"):
            published.realm.connect(free)
        with pytest.raises(UsageError, match="not published"):
            published.realm.forward(free)
        # A client of another make asks the agent all the same.
        _, theirs = pair()
        tunnel = published.realm.tunnel

        async def ask() -> None:
            await (await tunnel.streams()).open(free, theirs).answered

        with pytest.raises(DomainError, match="publishes no such port"):
            tunnel.do(ask())


def test_nobody_serves(published: Published) -> None:
    with pytest.raises(DomainError, match="does not serve"):
        published.realm.connect(published.other)
    with serving(published.other, echo), published.realm.connect(published.other) as connected:
        connected.sendall(b"now")
        assert connected.recv(3) == b"now"


def test_another_application_on_the_port(published: Published) -> None:
    """All applications share one loopback: whoever is first on a port that is not theirs gets nothing."""
    agent = published.world.agent
    accepted: list[bytes] = []
    with serving(published.port, lambda stream: accepted.append(stream.recv(10))):
        owner = agent.ports._owners[published.port]
        owner.uid += 1
        with pytest.raises(DomainError, match="does not serve"):
            published.realm.connect(published.port)
        owner.uid -= 1
        with published.connect() as connected:
            connected.sendall(b"mine")
            assert eventually(lambda: accepted == [b"mine"])


def test_a_listener_that_changes_while_it_is_connected_to(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([{(os.getuid(), 1)}, {(os.getuid(), 2)}])
    monkeypatch.setattr(agent_ports.Ports, "served", lambda self, ports: dict.fromkeys(ports, next(found)))
    accepted: list[bytes] = []
    with serving(published.port, lambda stream: accepted.append(read_all(stream))):
        with pytest.raises(DomainError, match="does not serve"):
            published.realm.connect(published.port)
        time.sleep(0.1)
    assert accepted in ([], [b""])


def test_too_many_streams(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_streams, "MAX_STREAMS", 2)
    with serving(published.port, echo), published.connect(), published.connect() as second:
        with pytest.raises(DomainError, match="as many streams as it can"):
            published.connect()
        second.sendall(b"x")
        assert second.recv(1) == b"x"


def test_evidence_comes_first(published: Published) -> None:
    """A token that another key was put into opens no connection, and no byte reaches the program."""
    published.realm.tunnel  # noqa: B018
    agent = published.world.agent
    agent.service._key = bytes(agent.spki[:-1]) + bytes([agent.spki[-1] ^ 1])
    reached: list[bytes] = []
    with serving(published.port, lambda stream: reached.append(stream.recv(1))):
        with pytest.raises(ChallengeMismatch):
            published.realm.connect(published.port)
        with pytest.raises(ChallengeMismatch):
            published.realm.forward(published.port)
    assert not reached


def test_a_realm_that_has_ended(published: Published) -> None:
    with published.realm.forward(published.port, told=published.told.append) as forward:
        published.world.record.state = "destroyed"
        published.world.host.cut(published.world.record)
        assert published.realm.tunnel.cut.wait(PATIENCE)
        assert isinstance(forward.address, tuple)
        with dial(forward.address[1]) as client, pytest.raises(ConnectionResetError):
            read_all(client)
        assert eventually(lambda: [type(error) for error in published.told] == [Conflict])
    with pytest.raises(DomainError, match="is destroyed"):
        published.realm.connect(published.port)


# Local ports


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"you asked for {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(published: Published) -> Iterator[Published]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", published.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield published
    server.shutdown()
    server.server_close()


def test_an_ordinary_client_at_a_local_port(web: Published) -> None:
    with web.realm.forward(web.port) as forward:
        assert isinstance(forward.address, tuple) and forward.address[0] == "127.0.0.1"
        client = http.client.HTTPConnection(*forward.address, timeout=PATIENCE)
        for path in ("/one", "/two"):
            client.request("GET", path)
            assert client.getresponse().read() == f"you asked for {path}".encode()
    with pytest.raises(ConnectionRefusedError):
        dial(forward.address[1])
    client.request("GET", "/three")  # what was connected goes on
    assert client.getresponse().read() == b"you asked for /three"


def test_a_unix_socket(web: Published, tmp_path: Path) -> None:
    path = tmp_path / "local"
    with web.realm.forward(web.port, str(path)) as forward:
        assert forward.address == str(path) and path.stat().st_mode & 0o777 == 0o600
        client = http.client.HTTPConnection("realm", timeout=PATIENCE)
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(str(path))
        client.request("GET", "/")
        assert client.getresponse().read() == b"you asked for /"
        with pytest.raises(UsageError, match="in use"):
            web.realm.forward(web.port, str(path))
    assert not path.exists()


def test_a_client_that_is_refused(published: Published) -> None:
    with published.realm.forward(published.other, told=published.told.append) as forward:
        assert isinstance(forward.address, tuple)
        with dial(forward.address[1]) as client, pytest.raises(ConnectionResetError):
            read_all(client)
        assert eventually(lambda: bool(published.told))
    assert "does not serve" in published.told[0].message


def test_where_nobody_can_listen(published: Published) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="in use"):
        published.realm.forward(published.port, taken.getsockname())


# The command


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vambrace.cli.main", "connect", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command(web: Published) -> None:
    name = web.world.record.name
    running = command(name, str(web.port), "--listen", "127.0.0.1:0", "--json")
    try:
        assert running.stdout is not None
        said = ""
        line = ""
        while line != "}\n":
            line = running.stdout.readline()
            assert line, running.communicate()
            said += line
        found = json.loads(said)
        assert found["verified"] is True and found["measurement"] == web.world.measurement.hex()
        client = http.client.HTTPConnection(found["listen"], timeout=PATIENCE)
        client.request("GET", "/")
        assert client.getresponse().read() == b"you asked for /"
        web.world.record.state = "destroyed"
        web.world.host.cut(web.world.record)
        rest, errors = running.communicate(timeout=PATIENCE)
        assert running.returncode == 8 and "is destroyed" in errors, errors
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("place", ["5432", "host", "127.0.0.1:70000", "::1:5432", "a:b:1"])
def test_places_that_are_none(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "patients", "5432", "--listen", place]) == 2
    assert "no address with a port" in capsys.readouterr().err


def test_a_port_that_is_not_published(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    name = published.world.record.name
    assert main(["connect", name, "1"]) == 2
    assert f"it publishes {published.port}, {published.other}" in capsys.readouterr().err
