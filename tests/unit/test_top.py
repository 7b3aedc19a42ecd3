"""``vambrace top``: whose numbers are shown to whom, and a terminal that is left as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from vambrace.cli.top import HEAD, as_dict, cells
from vambrace.client.usage import Usage
from vambrace.client.watch import PAUSE, Watch
from vambrace.errors import DomainError, HostError

FACTS = {
    "uuid": "u1",
    "name": "patients",
    "class": "realm",
    "state": "running",
    "cpu": 45,
    "memory": 512 << 20,
    "processors": [2, 3],
    "shared_processors": [],
}


def usage(**changes: Any) -> Usage:
    return Usage.decode({**FACTS, **changes})


@dataclass
class FakeRealm:
    """A Realm's channel; ``faults`` and ``exchanged`` are what it counts."""

    faults: int = 0
    exchanged: int = 0
    error: DomainError | None = None
    closed: int = 0

    def stats(self) -> list[Any]:
        if self.error:
            raise self.error
        zone = {"window": 100, "plaintext": 60, "plaintext_max": 90, "faults": self.faults}
        return [zone, {**zone, "faults": 0}]

    def messages(self) -> list[Any]:
        return [{"sent": self.exchanged, "received": 0}]

    def close(self) -> None:
        self.closed += 1


@dataclass
class World:
    usages: list[Usage] = field(default_factory=list)
    realms: dict[str, FakeRealm] = field(default_factory=dict)
    attached: list[str] = field(default_factory=list)
    now: float = 0.0

    def watch(self) -> Watch:
        return Watch(lambda: self.usages, lambda: self.realms, self._attach, lambda: self.now)

    def _attach(self, uuid: str) -> FakeRealm:
        self.attached.append(uuid)
        return self.realms[uuid]


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "45"},
        {"cpu": -1},
        {"cpu": 10**9},
        {"memory": None},
        {"memory": True},
        {"processors": None},
        {"processors": [-1]},
        {"name": 5},
        {"state": None},
        {"class": []},
    ],
)
def test_a_host_that_says_something_else(change: dict[str, Any]) -> None:
    with pytest.raises(HostError, match="does not say what its domains use"):
        usage(**change)
    with pytest.raises(HostError):
        Usage.decode([])


def test_control_characters_of_a_host_are_taken_away() -> None:
    assert usage(name="a\x1b[31mb").name.isprintable()


def test_only_one_s_own_realms_are_looked_into() -> None:
    world = World([usage(), usage(uuid="u2", name="other")], {"u1": FakeRealm()})
    with world.watch() as watch:
        mine, other = watch.look()
        assert mine.inside is not None and other.inside is None
        assert world.attached == ["u1"]
        _, first, second = cells([mine, other])
        assert first[-5:] == ["120", "200", "180", "-", "-"], "no rate before the second look"
        assert second[-5:] == ["-"] * 5
        assert as_dict(other)["inside"] is None
    assert world.realms["u1"].closed == 1


def test_rates_are_of_the_time_between() -> None:
    realm = FakeRealm(faults=1000, exchanged=1 << 20)
    world = World([usage()], {"u1": realm})
    with world.watch() as watch:
        watch.look()
        world.now, realm.faults, realm.exchanged = 2.0, 1500, 9 << 20
        (row,) = watch.look()
        assert row.inside is not None
        assert (row.inside.faults, row.inside.message_bytes) == (250.0, 4 << 20)
        assert cells([row])[1] == [
            *("patients", "realm", "running", "2,3", "45 %", "512 MiB"),
            *("120", "200", "180", "250", "4.0 MiB/s"),
        ]
        # A Realm that counts backwards.
        world.now, realm.faults = 3.0, 0
        (row,) = watch.look()
        assert row.inside is not None and row.inside.faults == 0.0
    assert world.attached == ["u1"], "one channel for all looks"


def test_a_realm_that_does_not_answer_is_left_alone_for_a_while() -> None:
    realm = FakeRealm(error=DomainError("gone"))
    world = World([usage()], {"u1": realm})
    with world.watch() as watch:
        for _ in range(PAUSE + 1):
            (row,) = watch.look()
            assert row.inside is None
        assert world.attached == ["u1"] and realm.closed == 1
        realm.error = None
        (row,) = watch.look()
        assert row.inside is not None and world.attached == ["u1", "u1"]


def test_a_realm_that_ended() -> None:
    realm = FakeRealm()
    world = World([usage()], {"u1": realm})
    with world.watch() as watch:
        watch.look()
        world.usages = [usage(state="destroying")]
        (row,) = watch.look()
        assert row.inside is None
        world.usages = []
        assert watch.look() == [] and realm.closed == 1


def test_unknown_shares_and_shared_processors() -> None:
    world = World([usage(cpu=None, processors=[], shared_processors=[1])])
    with world.watch() as watch:
        head, row = cells(watch.look())
    assert head == list(HEAD)
    assert row[3:5] == ["1 (shared)", "-"]


# --- the terminal -----------------------------------------------------------------------------------------

PROGRAM = """
import sys
from vambrace.cli.live import Screen, show
from vambrace.errors import HostUnreachable
looks = 0
def look():
    global looks
    looks += 1
    if "down" in sys.argv:
        raise HostUnreachable("the host does not answer")
    return Screen(f"look {looks}", [["DOMAIN", "CPU"], *([f"domain-{n}", "5 %"] for n in range(50))], 1)
show(look, look() if "down" not in sys.argv else Screen("none", [["DOMAIN", "CPU"], ["only", "5 %"]], 1))
print("after")
"""


class Terminal:
    """A program in a terminal of 80 columns and 24 lines."""

    def __init__(self, *words: str) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.theirs)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.said = b""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: bytes, seconds: float = 60) -> bytes:
        """What was said from now on until it matches."""
        deadline = time.monotonic() + seconds
        self.said = b""
        while not re.search(pattern, self.said, re.DOTALL):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} never came: {self.said[-2000:]!r}"
            if select.select([self.ours], [], [], left)[0]:
                self.said += os.read(self.ours, 1 << 16)
        return self.said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    made = Terminal(*words)
    try:
        yield made
    finally:
        made.close()


def left_clean(shown: Terminal, last: bytes = b"after", code: int = 0) -> None:
    said = shown.until(rb"\x1b\[\?1049l.*" + last)
    assert b"\x1b[?25h" in said, "the cursor is back"
    assert shown.process.wait(60) == code
    now = cast("list[Any]", termios.tcgetattr(shown.theirs))
    assert now[:4] == shown.before[:4], "keys are seen again, line by line"


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x04"])
def test_a_key_ends_it(key: bytes) -> None:
    with terminal() as shown:
        said = shown.until(rb"domain-\d+.*more do not fit")
        assert b"\x1b[?1049h" in said and b"domain-49" not in said
        os.write(shown.ours, b"x")
        os.write(shown.ours, key)
        left_clean(shown)


def test_an_interrupt_ends_it() -> None:
    with terminal() as shown:
        shown.until(rb"domain-\d+.*more do not fit")
        os.write(shown.ours, b"\x03")  # the terminal makes a signal of it
        left_clean(shown)
    with terminal() as shown:
        shown.until(rb"domain-\d+.*more do not fit")
        os.kill(shown.process.pid, signal.SIGINT)
        left_clean(shown)
    with terminal() as shown:
        shown.until(rb"domain-\d+.*more do not fit")
        os.kill(shown.process.pid, signal.SIGTERM)
        left_clean(shown, b"", 128 + signal.SIGTERM)


def test_it_fits_a_terminal_that_changes() -> None:
    with terminal() as shown:
        shown.until(b"31 more do not fit|30 more do not fit")
        shown.resize(70, 100)
        said = shown.until(b"domain-49")
        assert b"do not fit" not in said[said.rindex(b"domain-0") :]
        shown.resize(6, 20)
        shown.until(b"48 more")
        os.write(shown.ours, b"q")
        left_clean(shown)


def test_a_host_that_goes_away_is_said_and_waited_for() -> None:
    with terminal("down") as shown:
        assert b"only" in shown.until(b"the host does not answer")
        os.write(shown.ours, b"q")
        left_clean(shown)
