"""Percentages, statistics and bounds of a Realm, as its owner asks for them; the agent may lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_agent import make_auto, make_stats
from client_harness import World, living_world

from vambrace import Realm
from vambrace.attest.owner import Bounds
from vambrace.client import changes, zones
from vambrace.config import Zone
from vambrace.errors import (
    DomainError,
    UsageError,
)
from vambrace.pager.window import ZoneStats


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with living_world(tmp_path) as world:
        yield world


def test_a_percentage_out_of_range_or_for_nobody(world: World) -> None:
    with Realm.run(world.bundle) as realm:
        with pytest.raises(UsageError, match="101"):
            realm.encrypt("analysis", 101)
        with pytest.raises(UsageError, match="nobody"):
            realm.encrypt("nobody", 50)


def test_a_replayed_percentage_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Realm.run(world.bundle) as realm:
        realm.encrypt("analysis", 90)
        monkeypatch.setattr(realm._context, "next_counter", lambda uuid: 1)
        with pytest.raises(DomainError, match="refused"):
            realm.encrypt("analysis", 10)
        assert world.record.monitor.percents[1] == 90


def test_a_change_that_takes_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns when the invariant holds, says how far that is, and a cut channel is opened again meanwhile."""
    monkeypatch.setattr("vambrace.client.changes.LOOK_SECONDS", 0.01)
    seen: list[tuple[str, int, int]] = []

    with Realm.run(world.bundle) as realm:
        monitor = world.record.monitor
        monitor.pace = 100

        def look(step: str, done: int = 0, total: int = 0) -> None:
            assert monitor.percents[1] == 80
            seen.append((step, done, total))
            if done == 200 and realm._channel is not None:
                realm._channel._socket.close()

        assert realm.change("analysis") is None and realm.follow_change("analysis") is None
        realm.encrypt("analysis", 95, look)
        assert monitor.percents[1] == 95
        assert seen == [("encrypting system", done, 400) for done in (100, 200, 300)]
        change = realm.change("analysis")
        assert change is not None and change.ended and change.counter == monitor.counter
        assert realm.follow_change("analysis") == change


def test_a_change_is_followed_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited is interrupted, the change goes on, and another process waits for it."""
    monkeypatch.setattr("vambrace.client.changes.LOOK_SECONDS", 0.01)

    def interrupt(step: str, done: int = 0, total: int = 0) -> None:
        raise KeyboardInterrupt

    with Realm.run(world.bundle) as realm:
        world.record.monitor.pace = 100
        with pytest.raises(KeyboardInterrupt):
            realm.encrypt("analysis", 95, interrupt)
        with Realm.attach("patients") as again:
            again.detach()
            change = again.follow_change("analysis")
        assert change is not None and change.state == "done" and change.percent == 95
        assert world.record.monitor.percents[1] == 95


def test_a_change_that_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vambrace.client.changes.LOOK_SECONDS", 0.01)
    with Realm.run(world.bundle) as realm:
        monitor = world.record.monitor
        monitor.fails = "95 % cannot be encrypted: 100 pages are pinned for devices"
        with pytest.raises(DomainError, match="100 pages are pinned") as caught:
            realm.encrypt("analysis", 95)
        assert caught.value.hint == "release pages"
        monitor.fails, monitor.pace = "", 100
        monkeypatch.setattr(monitor, "change_lies", {"counter": 1 << 62, "percent": 5})
        with pytest.raises(DomainError, match="another order"):
            realm.encrypt("analysis", 95)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("zone", [0, 3, -1, "1", None, True]),
        ("percent", [101, -1, 5.0, None]),
        ("counter", [-1, 1 << 63, "7"]),
        ("state", ["ready", None, 3, ["done"]]),
        ("working", [3, -1, None]),
        ("left", [401, -1, None]),
        ("total", [-1, 32769, 1.5, None]),
    ],
)
def test_a_change_that_none_can_be(world: World, key: str, values: list[Any]) -> None:
    """An agent may be anybody's program."""
    good = {"zone": 1, "percent": 95, "counter": 5, "state": "running", "working": 0, "left": 400, "total": 400}
    found = changes.check(world.config, 1, good | {"error": "\x1b[2J", "hint": [1]})
    assert found is not None and (found.application, found.working, found.error) == ("analysis", "system", "?[2J")
    for value in values:
        with pytest.raises(DomainError, match="no possible"):
            changes.check(world.config, 1, good | {key: value})
    for value in ("done", [], 7, True, {}):
        with pytest.raises(DomainError, match="no possible"):
            changes.check(world.config, 1, value)


def test_bounds_of_a_percentage(world: World) -> None:
    with Realm.run(world.bundle) as realm:
        monitor = world.record.monitor
        realm.auto("analysis", Bounds(30, 90, 50))
        assert [zone["auto"] for zone in realm.stats()] == monitor.autos
        assert realm._channel is not None
        realm._channel._socket.close()
        realm.auto("analysis", None)
        assert monitor.autos == [None] * 3
        with pytest.raises(UsageError, match="nobody"):
            realm.auto("nobody", None)


def test_bounds_are_confirmed_when_they_are_in_force(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Realm.run(world.bundle) as realm:
        monitor = world.record.monitor
        monitor.stubborn = True
        monitor.percents[1] = 10
        looks: list[str] = []

        def looked(step: str, done: int = 0, total: int = 0) -> None:
            looks.append(step)
            if len(looks) == 3:
                monitor.percents[1] = 30

        monkeypatch.setattr(changes, "LOOK_SECONDS", 0)
        realm.auto("analysis", Bounds(30, 90, 50), looked)
        assert looks == ["bringing analysis within its bounds"] * 3
        monitor.percents[1] = 10
        monitor.error = "7 pages are pinned"
        with pytest.raises(DomainError, match="still at 10 %: 7 pages are pinned"):
            realm.auto("analysis", Bounds(30, 90, 50))


def test_bounds_that_an_agent_makes_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others than were ordered, for another zone, or none: the owner must not think that they hold."""
    wrong: list[Any] = [
        [None] * 3,
        [make_auto(Bounds(30, 90, 50)), None, None],
        [None, make_auto(Bounds(20, 90, 50)), None],
        [None, make_auto(Bounds(30, 90, 51)), None],
        [None, make_auto(Bounds(30, 90, 50))],
        None,
        {},
    ]
    with Realm.run(world.bundle) as realm:
        for autos in wrong:
            monkeypatch.setattr(world.record.monitor, "auto", lambda message, autos=autos: autos)
            with pytest.raises(DomainError, match="other bounds|other zones"):
                realm.auto("analysis", Bounds(30, 90, 50))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("lowest", [0, 101, 91, -1, None, "30", True]),
        ("highest", [29, 101, None, 90.0]),
        ("slowdown", [0, 1000, None]),
        ("idle", [None, 0, "no"]),
        ("expected", [-1, 1001, 1.5, "3"]),
    ],
)
def test_a_state_of_auto_that_none_can_be(key: str, values: list[Any]) -> None:
    good = make_auto(Bounds(30, 90, 50), error="\x1b[2J", more=[1])
    checked = zones.check_auto(ZONE, good)
    assert checked == {**make_auto(Bounds(30, 90, 50)), "error": "?[2J"} and zones.check_auto(ZONE, None) is None
    for value in values:
        with pytest.raises(DomainError, match="no possible"):
            zones.check_auto(ZONE, good | {key: value})
    for value in (7, [], "on", True, {}):
        with pytest.raises(DomainError, match="no possible"):
            zones.check_auto(ZONE, value)


ZONE = Zone("analysis", 16 << 20, 80)


@pytest.mark.parametrize("key", sorted(make_stats(ZONE)))
def test_statistics_that_no_window_can_have(key: str) -> None:
    """An agent may be anybody's program: what it says of its memory is checked before it is calculated with."""
    wrong: list[Any] = [None, -1, 1.5, float("nan"), "7", "\x1b[2J", [1], {}, 1 << 64, True]
    if key == "open":
        wrong = [0, 1, None, "no", [True]]
    elif key == "histogram":
        wrong = [*wrong, [], [0] * 65, [[0]], [-1], [True], [0.5], ["1"], [1 << 64], [None], {"0": 1}]
        wrong.remove([1])
    elif key == "pages":
        wrong += [0, 4095, 4097]
    elif key == "percent":
        wrong += [101]
    elif key in ("window", "plaintext", "plaintext_max", "standby", "pinned"):
        wrong += [4097]
    for value in wrong:
        with pytest.raises(DomainError, match=f"analysis have no possible {key}"):
            zones.check(ZONE, make_stats(ZONE, **{key: value}))
    incomplete = make_stats(ZONE)
    del incomplete[key]
    with pytest.raises(DomainError, match=key):
        zones.check(ZONE, incomplete)


def test_statistics_at_their_limits() -> None:
    most = (1 << 64) - 1
    full = make_stats(ZONE, percent=0, open=True, window=4096, plaintext=4096, faults=most, histogram=[most] * 64)
    checked = zones.check(ZONE, {**full, "name": "\x1b[2J", "more": [[]]})
    assert checked == {**full, "name": "analysis", "auto": None}, "the name is ours, and what nobody knows is left out"
    # All that the window counts is among it, under the same names.
    assert set(ZoneStats.FIELDS) == set(checked) - {"name", "auto"}


def test_a_realm_that_lies_about_its_memory(world: World) -> None:
    with Realm.run(world.bundle) as realm:
        world.record.monitor.lies = {"window": 1 << 40}
        with pytest.raises(DomainError, match="system have no possible window"):
            realm.stats()
        world.record.monitor.lies = {}
        assert realm.stats()[0]["window"] == 819
