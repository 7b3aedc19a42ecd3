"""Messages between Realms: the agent's side, and what its programs are told."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from messages_world import (
    PATIENCE,
    Realm,
    Two,
    World,
    agent_settings,
    certificate,
    connect,
    dial,
    echo,
    endpoints,
    free_port,
    reset,
    serving,
)

from vambrace.host.messages import header


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def knock(realm: Realm, data: bytes) -> socket.socket:
    """Connect to a Realm's agent as the daemon does."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PATIENCE)
    stream.connect(str(realm.path))
    stream.sendall(data)
    return stream


@pytest.mark.parametrize(
    "data",
    [
        header("connect", 7),  # never asked for
        header("offer", 1),  # no such endpoint
        header("offer", 1 << 31),
        b"x\0\0\0\0",
        b"o\0",
        b"",
    ],
)
def test_streams_that_an_agent_does_not_expect(world: World, data: bytes) -> None:
    two = Two(world)
    for realm in (two.offerer, two.caller):
        with knock(realm, data) as stream:
            stream.shutdown(socket.SHUT_WR)
            assert stream.recv(1) == b""
    with knock(two.caller, header("offer", 0)) as stream:  # one of the other kind
        assert stream.recv(1) == b""


def test_an_agent_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that the monitor granted and never opened: the program is told, and a late one is closed."""
    monkeypatch.setattr(endpoints, "ANSWER_SECONDS", 0.2)
    granted: list[int] = []
    realm = Realm(77, world.folder, "alice", "ward", ())
    port = free_port()
    wanted = [agent_settings.Endpoint({"name": "records", "role": "connect", "port": port})]
    endpoints.Endpoints(wanted, realm.listener, lambda index, number: granted.append(number)).start()
    assert reset(port)
    with knock(realm, header("connect", granted[0])) as late:
        assert late.recv(1) == b""


def test_an_agent_paces_its_requests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its owner's have their turn at the monitor."""
    monkeypatch.setattr(endpoints, "BURST", 2.0)
    monkeypatch.setattr(endpoints, "RATE", 20.0)
    two = Two(world)
    with serving(two.far, echo):
        begin = time.monotonic()
        for _ in range(6):
            with dial(two.near) as program:
                program.sendall(b"x")
                assert program.recv(1) == b"x"
        assert time.monotonic() - begin >= 4 / 20 * 0.95


def test_a_port_that_is_taken(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(endpoints.AgentError, match="records: port"):
        world.realm("alice", "ward", connect("records", other.getsockname()[1], "bob"))


def test_programs_are_told_where() -> None:
    fields = {"name": "w", "command": ["x"], "environment": {"A": "b"}, "directory": "/", "restarts": 0}
    fields |= {"results": [], "memory": 1}
    wanted = agent_settings.Settings(
        {
            "name": "r",
            "owner": certificate("alice"),
            "hash": "sha-256",
            "collect_seconds": 1,
            "lasting": False,
            "digests": ["sha256", "sha512"],
            "applications": [fields, fields | {"environment": {"ENDPOINT_RAW_DATA": "mine"}}],
            "endpoints": [{"name": "raw-data", "role": "connect", "port": 9000}],
        }
    )
    told, own = (application.environment for application in wanted.applications)
    desk = {"VAMBRACE_AGENT": agent_settings.DESK}
    assert told == {**desk, "ENDPOINT_RAW_DATA": "127.0.0.1:9000", "A": "b"}
    assert own == {**desk, "ENDPOINT_RAW_DATA": "mine"}
