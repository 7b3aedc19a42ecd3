"""Events since the launch: registers, their replay, the agent's log and desk, and what an owner gets to see."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_agent import Agent
from client_harness import World, living_world
from config_factory import make_application
from hypothesis import given
from hypothesis import strategies as st

from vambrace import Realm
from vambrace.attest.events import Event, verify_events
from vambrace.cli.main import main
from vambrace.errors import EventsMismatch, MalformedEvidence, UsageError
from vambrace.measure.registers import BYTES, COUNT, Registers, event_digest, replay

from vambrace_agent import AgentError, desk, events, pace  # isort: skip
from vambrace_agent import main as agent_main  # isort: skip
from vambrace_agent.sealing import Sealing  # isort: skip
from vambrace_agent.settings import Application  # isort: skip

LOG = [Event(0, "", "start db"), Event(1, "db", "model 1"), Event(3, "db", "é"), Event(1, "db", "model 2")]


def rems(log: list[Event], algorithm: str = "sha-256") -> tuple[bytes, ...]:
    found = ((event.register, event_digest(algorithm, event.application, event.text)) for event in log)
    return replay(algorithm, found)


def application(index: int = 1, **changes: Any) -> Application:
    fields = {"name": f"app-{index}", "command": ["x"], "environment": {}, "directory": "/", "restarts": 0}
    return Application(index, {**fields, "results": [], "memory": 1 << 24, "registers": [1], **changes})


# Registers


def test_a_register_is_a_chain_of_hashes() -> None:
    registers = Registers("sha-256")
    assert registers.values == (bytes(32),) * 4
    once = hashlib.sha256(bytes(32) + b"a" * 32).digest()
    assert registers.extend(2, b"a" * 32) == once
    assert registers.extend(2, b"b" * 32) == hashlib.sha256(once + b"b" * 32).digest()
    assert registers.values[:2] == (bytes(32),) * 2 and registers.values[3] == bytes(32)


@pytest.mark.parametrize(("index", "value"), [(-1, bytes(32)), (4, bytes(32)), (0, bytes(31)), (0, bytes(33))])
def test_what_does_not_extend_a_register(index: int, value: bytes) -> None:
    registers = Registers("sha-256")
    with pytest.raises(UsageError):
        registers.extend(index, value)
    assert registers.values == (bytes(32),) * 4


def test_the_other_hash_of_the_configuration() -> None:
    if "sm3" not in hashlib.algorithms_available:
        pytest.skip("hashlib has no SM3 here")
    assert verify_events(rems(LOG, "sm3"), "sm3", LOG) == LOG
    with pytest.raises(EventsMismatch):
        verify_events(rems(LOG, "sm3"), "sha-256", LOG)


def test_who_said_it_is_part_of_the_digest() -> None:
    said = {event_digest("sha-256", *pair) for pair in (("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""))}
    assert len(said) == 4


# Replay

EVENTS = st.builds(Event, st.integers(0, COUNT - 1), st.text(max_size=8), st.text(max_size=20))


@given(st.lists(EVENTS, max_size=8), st.lists(EVENTS, max_size=3))
def test_the_beginning_that_is_proven(log: list[Event], later: list[Event]) -> None:
    assert verify_events(rems(log), "sha-256", log + later) == log


@given(st.lists(EVENTS, min_size=1, max_size=6), st.data())
def test_a_log_that_was_changed(log: list[Event], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(log) - 1))
    other = data.draw(EVENTS.filter(lambda event: event != log[place]))
    for wrong in (log[:place] + log[place + 1 :], log[:place] + [other] + log[place + 1 :]):
        with pytest.raises(EventsMismatch):
            verify_events(rems(log), "sha-256", wrong)


def test_order_within_a_register_is_proven() -> None:
    with pytest.raises(EventsMismatch):
        verify_events(rems(LOG), "sha-256", [LOG[0], LOG[3], LOG[2], LOG[1]])


@pytest.mark.parametrize(
    "changes",
    [
        {"register": 4},
        {"register": -1},
        {"register": True},
        {"register": "0"},
        {"application": None},
        {"application": "x" * 256},
        {"text": 1},
        {"text": "\ud800"},
        {"text": "x" * 70000},
    ],
)
def test_what_is_no_event(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvidence):
        Event.decode({**LOG[0].as_dict(), **changes})


# The agent's log and desk


class Monitor:
    def __init__(self) -> None:
        self.registers = Registers("sha-256")
        self.refuses = False

    def extend(self, index: int, digest: bytes) -> None:
        if self.refuses:
            raise AgentError("the monitor does not answer")
        self.registers.extend(index, digest)


def as_events(found: list[dict[str, object]]) -> list[Event]:
    return [Event.decode(one) for one in found]


def test_the_agents_log_explains_the_registers() -> None:
    monitor = Monitor()
    log = events.Events("sha-256", monitor.extend)
    log.started(application())
    log.told(application(), 1, "loaded model é")
    found, count = log.read(0)
    expected = [Event(0, "", "start app-1"), Event(1, "app-1", "loaded model é")]
    assert (as_events(found), count) == (expected, 2)
    assert verify_events(monitor.registers.values, "sha-256", as_events(found)) == expected


@pytest.mark.parametrize(
    ("index", "text", "message"),
    [
        (0, "x", "may not extend register 0"),
        (2, "x", "may not extend register 2"),
        (1, "", "1 to 1024 bytes"),
        (1, "é" * 513, "1 to 1024 bytes"),
        (1, "\udc80", "Unicode"),
    ],
)
def test_what_an_application_may_not_say(index: int, text: str, message: str) -> None:
    monitor = Monitor()
    log = events.Events("sha-256", monitor.extend)
    with pytest.raises(AgentError, match=message):
        log.told(application(), index, text)
    assert monitor.registers.values == (bytes(BYTES),) * COUNT and log.read(0) == ([], 0)


def test_no_event_without_the_register_and_no_start_without_the_event() -> None:
    monitor = Monitor()
    monitor.refuses = True
    log = events.Events("sha-256", monitor.extend)
    for attempt in (lambda: log.told(application(), 1, "x"), lambda: log.started(application())):
        with pytest.raises(AgentError, match="does not answer"):
            attempt()
    assert log.read(0) == ([], 0)


def test_one_application_does_not_fill_the_log_for_others() -> None:
    log = events.Events("sha-256", Monitor().extend)
    for number in range(events.MAX_EVENTS):
        log.told(application(), 1, str(number))
    with pytest.raises(AgentError, match="at most"):
        log.told(application(), 1, "one more")
    log.told(application(2), 1, "another's")
    first, count = log.read(0)
    last, _ = log.read(count - 1)
    assert (len(first), count) == (events.AT_ONCE, events.MAX_EVENTS + 1)
    assert last == [{"register": 1, "application": "app-2", "text": "another's"}]


class Program:
    """A connection to the desk, as an application makes it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def send(self, line: bytes) -> dict[str, Any]:
        self.socket.sendall(line + b"\n")
        answer: dict[str, Any] = json.loads(self.lines.readline())
        return answer

    def ask(self, **request: object) -> dict[str, Any]:
        return self.send(json.dumps(request).encode())


def open_desk(path: Path, log: events.Events, uid: int) -> Path:
    ours = application()
    ours.uid = uid
    handlers = agent_main.handlers(log, None, [], Sealing(None, lambda version: b""), [ours])
    desk.Desk(str(path), [ours], handlers).start()
    return path


def test_the_desk(tmp_path: Path) -> None:
    log = events.Events("sha-256", Monitor().extend)
    program = Program(open_desk(tmp_path / "desk", log, os.getuid()))
    assert program.ask(op="extend", register=1, text="hello") == {"ok": True}
    assert log.read(0)[0] == [{"register": 1, "application": "app-1", "text": "hello"}]
    for wrong in (b"", b"[]", b"{", b'{"op": []}', b'{"op": "attest"}', b"[" * 5000, b"\xff"):
        reply = program.send(wrong)
        assert not reply["ok"] and "op: extend" in reply["error"]
    for fields in ({"register": True, "text": "x"}, {"register": 1}, {"text": "x"}, {"register": 2, "text": "x"}):
        assert not program.ask(op="extend", **fields)["ok"]
    assert log.read(0)[1] == 1


def test_the_desk_knows_its_callers(tmp_path: Path) -> None:
    """Somebody who is no application is not answered, and neither is one more connection than an application has."""
    log = events.Events("sha-256", Monitor().extend)
    stranger = Program(open_desk(tmp_path / "strange", log, os.getuid() + 1))
    assert stranger.lines.readline() == b""
    path = open_desk(tmp_path / "desk", log, os.getuid())
    programs = [Program(path) for _ in range(desk.MAX_CONNECTIONS)]
    assert all(program.ask(op="none")["ok"] is False for program in programs)
    assert Program(path).lines.readline() == b""
    programs[0].lines.close()
    programs[0].socket.close()
    for _ in range(200):
        late = Program(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            late.socket.sendall(b"{}\n")
            if late.lines.readline():
                return
        threading.Event().wait(0.02)
    raise AssertionError("a place that was left is not given again")


def test_the_desk_outlives_a_want_of_descriptors(tmp_path: Path) -> None:
    log = events.Events("sha-256", Monitor().extend)
    path = open_desk(tmp_path / "desk", log, os.getuid())
    with socket.socket(socket.AF_UNIX) as client:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            client.connect(str(path))
            threading.Event().wait(3 * pace.RETRY_SECONDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        client.settimeout(20)
        client.sendall(b'{"op": "extend", "register": 1, "text": "here"}\n')
        assert client.makefile().readline() == '{"ok": true}\n'


class Clock:
    """In the place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-6  # no clock wakes up too soon


@pytest.mark.parametrize("count", [1, 2, 15])
def test_no_application_waits_for_anothers_requests(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    everybody = [application(index) for index in range(1, count + 1)]
    log = events.Events("sha-256", Monitor().extend)
    extend = agent_main.handlers(log, None, [], Sealing(None, lambda version: b""), everybody)["extend"]
    request = {"register": 1, "text": "said"}
    greedy, *others = everybody
    for _ in range(100):
        extend(greedy, request)
    begin = clock.now
    assert begin >= 18 * count, "it has its share and no more"
    for other in others:
        extend(other, request)
        extend(other, request)
    assert clock.now == begin


# An owner's view


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    names = ("analysis", "report")
    script = 'while [ ! -e "$ROOT/go" ]; do sleep 0.05; done'
    applications = tuple(make_application(name, command=("sh", "-c", script), registers=(1,)) for name in names)
    with living_world(tmp_path, applications=applications) as world:
        yield world


def running(world: World) -> tuple[Realm, Agent]:
    realm = Realm.create(world.bundle)
    realm.verify()
    realm.approve()
    realm.start()
    agent = world.agent
    while {process.state for process in agent.processes} != {"running"}:
        threading.Event().wait(0.01)
    return realm, agent


def test_an_owner_sees_what_is_proven(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    realm, agent = running(world)
    with realm:
        for number in range(40):  # more than one reply
            agent.events.told(agent.processes[0].application, 1, f"row {number}")
        found = realm.events()
        assert found[:2] == [Event(0, "", "start analysis"), Event(0, "", "start report")]
        assert found[2:] == [Event(1, "analysis", f"row {number}") for number in range(40)]

        before = realm.attest()
        agent.events.told(agent.processes[1].application, 1, "later")
        assert realm.events(before) == found

        assert main(["attest", world.record.name, "--events", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["events"][-1] == {"register": 1, "application": "report", "text": "later"}

        log = agent.events._log
        log[3] = {**log[3], "text": "row 1000"}
        with pytest.raises(EventsMismatch):
            realm.events()
        assert main(["attest", world.record.name, "--events"]) == 4
        assert "do not trust the log" in capsys.readouterr().err


def test_a_log_without_end_is_not_read_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    realm, agent = running(world)
    with realm:
        monkeypatch.setattr(agent.events, "read", lambda first: ([dataclasses.asdict(LOG[0])] * 32, 1 << 40))
        with pytest.raises(EventsMismatch):
            realm.events()
        monkeypatch.setattr(agent.events, "read", lambda first: ([], 5))
        with pytest.raises(Exception, match="no events"):
            realm.events()
