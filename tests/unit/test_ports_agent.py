"""Whose a published port is, from the kernel's tables; and what one application's many sockets cost another."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from vambrace_agent import ports, streams
from vambrace_agent.ports import Listener, Ports, TooMany, listeners
from vambrace_agent.settings import Application

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
PORT = 5432
ME = os.getuid()


def application(index: int, port: int = 0) -> Application:
    fields = {"name": f"app-{index}", "command": ["serve"], "environment": {}, "directory": "/", "restarts": 0}
    fields |= {"results": [], "memory": 1 << 24, "ports": [{"port": port}] if port else []}
    return Application(index, fields)


def line(number: int, address: str, port: int, user: int, state: str = "0A", *, remote: str = "00000000:0000") -> str:
    return (
        f"{number:4}: {address}:{port:04X} {remote} {state} 00000000:00000000 00:00000000 00000000 "
        f"{user:5}        0 {1000 + number} 1 000000005b69677b 100 0 0 10 0\n"
    )


def table(path: Path, lines: list[str]) -> tuple[str]:
    path.write_text(HEAD + "".join(lines))
    return (str(path),)


def test_who_takes_connections_to_the_loopback(tmp_path: Path) -> None:
    every, local, other = "00000000", "0100007F", "0200007F"
    six = ["0" * 32, "0000000000000000FFFF00000100007F", "0000000000000000FFFF000000000000"]
    there = [line(n, address, PORT, n) for n, address in enumerate((every, local, *six))]
    elsewhere = [
        line(10, other, PORT, 10),
        line(11, local, PORT + 1, 11),
        line(12, "00000000000000000000000001000000", PORT, 12),
        line(13, local, 80, 13, "01", remote=f"{local}:{PORT:04X}"),
        line(14, local, PORT, 14, "01", remote=f"{local}:9999"),
    ]
    found = listeners([PORT, PORT + 1, 80], table(tmp_path / "tcp", there + elsewhere))
    assert found == {PORT: {(n, 1000 + n) for n in range(5)}, PORT + 1: {(11, 1011)}, 80: set()}
    assert listeners([PORT], (str(tmp_path / "missing"),)) == {PORT: set()}


def test_all_of_a_long_table(tmp_path: Path) -> None:
    """However it is cut where it is read; and nothing of it is read that is behind the listening ones."""
    lines = [line(number, "00000000", number, 7) for number in range(1, 1501)]
    lines += [line(number, "0100007F", 1, 7, "01") for number in range(1 << 14)]
    paths = table(tmp_path / "tcp", lines)
    assert listeners([1, 700, 1500], paths) == {port: {(7, 1000 + port)} for port in (1, 700, 1500)}


def test_real_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.2", 0)) as other:
        place, elsewhere = one.getsockname()[1], other.getsockname()[1]
        inode = os.fstat(one.fileno()).st_ino
        found = listeners([place, elsewhere])
    assert found == {place: {(ME, inode)}, elsewhere: set()}


def test_who_makes_the_table_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, greedy = application(1, PORT), application(2, 8000)
    lines = [line(0, "0100007F", PORT, quiet.uid), line(1, "0100007F", 4000, 0)]
    lines += [line(number, "0200007F", number, greedy.uid) for number in range(2, ports.MAX_TABLE // 100)]
    paths = table(tmp_path / "tcp", lines)
    with pytest.raises(TooMany):
        listeners([PORT], paths)
    monkeypatch.setattr(ports, "listeners", lambda wanted: listeners(wanted, paths))
    ended: list[Application] = []
    assert Ports([quiet, greedy], ended.append).served([PORT]) == {PORT: set()} and ended == [greedy]
    assert Ports([quiet, greedy]).served([PORT]) == {PORT: set()}
    # Nobody is ended for sockets of somebody else.
    assert Ports([quiet], ended.append).served([PORT]) == {PORT: set()} and ended == [greedy, quiet]


class Counted(Ports):
    """``mine`` has all the ports; counts the looks at the kernel's tables."""

    looks = 0

    def served(self, ports: Collection[int]) -> dict[int, set[Listener]]:
        self.looks += 1
        return super().served(ports)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        yield server


def test_one_look_for_all_streams_of_a_turn(server: socket.socket) -> None:
    """Who opens many streams has no more looks taken than turns: two until they are connected."""
    port, count = server.getsockname()[1], 60
    mine = application(1, port)
    mine.owns = lambda user: user == ME  # type: ignore[method-assign]
    known = Counted([mine])
    agent = streams.Streams(None, b"", known, 1 << 16)  # type: ignore[arg-type]
    agent._in += b"".join(streams.HEADER.pack(b"o", number, port) for number in range(count))
    agent._last = -1
    agent._parse()
    agent._look()
    for stream in list(agent._streams.values()):
        poll = select.poll()
        poll.register(stream.program, select.POLLOUT)
        assert poll.poll(20_000)
        agent._serve_program(stream, select.POLLOUT)
    assert not agent._out, "nobody is told of a connection before it is known whose it is"
    agent._look()
    assert bytes(agent._out) == b"".join(streams.HEADER.pack(b"o", number, 0) for number in range(count))
    assert known.looks == 2
    for stream in agent._streams.values():
        stream.program.close()
