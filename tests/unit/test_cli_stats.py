"""What the commands show of pages, percentages and messages, and how an owner signs bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_agent import Monitor, make_auto, make_stats
from client_harness import World, living_world
from config_factory import make_endpoint

from vambrace.attest.owner import Bounds
from vambrace.cli import stats
from vambrace.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with living_world(tmp_path) as world:
        yield world


STATS = """\
ZONE      PERCENT   PAGES  ALLOWED  PLAINTEXT NOW  MOST  STANDBY  PINNED
system    80        32768  819      700            800   20       0
analysis  80        4096   819      700            800   20       0
report    0 (open)  4096   4096     700            800   20       3 of 16

ZONE      FAULTS  STANDBY HITS  EVICTIONS  ENCRYPTED  DECRYPTED  MEAN TIME
system    1000    50            300        1.2 MiB    0.8 MiB    5 µs
analysis  0       50            300        1.2 MiB    0.8 MiB    -
report    1000    50            300        1.2 MiB    0.8 MiB    5 µs
"""
HISTOGRAM = """
system: page faults by the time until they were answered
  < 1 µs   10  #
  < 2 µs  980  ########################################
  < 4 µs    0
  < 8 µs    9  #

analysis: no page faults answered

report: page faults by the time until they were answered
  < 1.05 s  2  ####################
    longer  4  ########################################
"""


def test_stats_for_people(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = ([0, 0, 10, 980, 0, 9] + [0] * 18, [0] * 24, [0] * 22 + [2, 4])
    differ: tuple[dict[str, Any], ...] = (
        {},
        {"faults": 0, "handler_ns": 0},
        {"percent": 0, "open": True, "window": 4096, "pinned": 3, "pin_budget": 16},
    )
    monkeypatch.setattr(
        Monitor,
        "stats",
        lambda self: {
            "zones": [
                make_stats(zone, histogram=histogram, **changes)
                for zone, histogram, changes in zip(world.config.zones, buckets, differ, strict=True)
            ],
            "auto": [None] * 3,
        },
    )
    assert main(["run", str(world.bundle), "--detach"]) == 0
    capsys.readouterr()
    assert main(["stats", "patients"]) == 0
    assert capsys.readouterr().out == STATS
    assert main(["stats", "patients", "--histogram"]) == 0
    assert capsys.readouterr().out == STATS + HISTOGRAM
    for words in (["--json"], ["--json", "--histogram"]):
        assert main(["stats", "patients", *words]) == 0
        value = json.loads(capsys.readouterr().out)
        assert [zone["histogram"] for zone in value["zones"]] == list(buckets)
        shown = make_stats(world.config.zones[2], histogram=buckets[2], **differ[2], name="report")
        assert value["zones"][2] == shown | {"auto": None}


def test_auto(world: World, capsys: Capture) -> None:
    """Bounds are signed and sent, shown by ``stats``, and taken back; a plain percentage is not theirs to replace."""
    assert main(["run", str(world.bundle), "--detach"]) == 0
    capsys.readouterr()
    monitor = world.record.monitor
    command = ["advise", "patients", "--app", "analysis"]
    assert main([*command, "--auto", "--from", "30", "--to", "90", "--slowdown", "2.5", "--json"]) == 0
    bounds = {"lowest": 30, "highest": 90, "slowdown": 25}
    assert json.loads(capsys.readouterr().out)["auto"] == bounds
    assert monitor.autos == [None, make_auto(Bounds(**bounds)), None] and not monitor.sampling
    assert main(["stats", "patients", "--json"]) == 0
    auto = [zone["auto"] for zone in json.loads(capsys.readouterr().out)["zones"]]
    assert auto == [None, bounds | {"idle": False, "expected": 31, "error": ""}, None]
    assert main([*command, "--auto", "--from", "40"]) == 0
    assert capsys.readouterr().out == (
        "patients: analysis is held from 40 to 100 %, for up to 5.0% of the time in page faults\n"
    )
    states: tuple[dict[str, Any], ...] = ({"expected": None, "idle": True}, {"error": "it \x1b[2J"}, {})
    monitor.autos = [make_auto(Bounds(40, 100, 50), **state) for state in states]
    assert main(["stats", "patients"]) == 0
    assert capsys.readouterr().out.endswith(AUTO)
    assert main([*command, "--no-auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auto"] is None and monitor.autos[1] is None


def test_endpoints_for_people(tmp_path: Path, capsys: Capture) -> None:
    with living_world(tmp_path, endpoints=(make_endpoint(measurement="ab" * 32),)) as world:
        assert main(["image", "inspect", str(world.bundle)]) == 0
        who = f"ward of the owner {'ef' * 16}…, measured as {'ab' * 32}"
        assert f"endpoint records: offer, port 8000, with {who}\n" in capsys.readouterr().out
        assert main(["run", str(world.bundle), "--detach", "--json"]) == 0
        capsys.readouterr()
        counts = {"open": 1, "connections": 3, "refused": 0, "sent": 1 << 20, "received": 512 << 10}
        none = {"endpoint": "records", "role": "offer", "peer": None} | dict.fromkeys(counts, 0)
        world.record.monitor.traffic = [none, none | counts | {"peer": "ward"}]
        assert main(["stats", "patients", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["endpoints"] == world.record.monitor.traffic
        assert main(["stats", "patients"]) == 0
        assert capsys.readouterr().out.endswith(TRAFFIC)
        world.agent.go()


TRAFFIC = """
ENDPOINT  ROLE   REALM     OPEN  CONNECTIONS  REFUSED  SENT     RECEIVED
records   offer  (others)  0     0            0        0.0 MiB  0.0 MiB
records   offer  ward      1     3            0        1.0 MiB  0.5 MiB
"""

AUTO = """\
ZONE      PERCENT  AUTO       UP TO  EXPECTED  STATE
system    80       40 to 100  5.0 %  -         idle
analysis  80       40 to 100  5.0 %  3.1 %     it ?[2J
report    80       40 to 100  5.0 %  3.1 %     held
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--auto", "--from", "30"], "one application"),
        (["--no-auto"], "one application"),
        (["--app", "a", "--auto"], "lower bound"),
        (["--app", "a", "--auto", "--to", "90"], "lower bound"),
        (["--app", "a", "--from", "30"], "bounds for --auto"),
        (["--app", "a", "--to", "30"], "bounds for --auto"),
        (["--app", "a", "--no-auto", "--from", "3"], "no bounds"),
        (["--app", "a", "--auto", "--from", "91", "--to", "90"], "between 91 and 90"),
        (["--app", "a", "--auto", "--from", "0"], "between 0 and 100"),
        (["--app", "a", "--auto", "--from", "101"], "whole number from 0 to 100"),
        (["--app", "a", "--auto", "--from", "30", "--slowdown", "0.01"], "0 thousandths"),
        (["--app", "a", "--auto", "--from", "30", "--slowdown", "99.99"], "1000 thousandths"),
        (["--app", "a", "--auto", "--from", "30", "--picture", "x.svg"], "without a picture"),
    ],
)
def test_bounds_that_are_none(words: list[str], says: str, capsys: Capture) -> None:
    assert main(["advise", "patients", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and says in lines[0] and lines[1].startswith("hint: ")


def test_stats_of_a_realm_that_lies(world: World, capsys: Capture) -> None:
    assert main(["run", str(world.bundle), "--detach"]) == 0
    capsys.readouterr()
    world.record.monitor.lies = {"handler_ns": "\x1b[2J"}
    assert main(["stats", "patients"]) == 8
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: the Realm's statistics of system have no possible handler_ns")


def test_times_for_people() -> None:
    times = {0.25: "0.25 µs", 99.96: "100 µs", 512.0: "512 µs", 1024.0: "1.02 ms", 262144.0: "262 ms", 5e9: "5000 s"}
    assert {value: stats._time(value) for value in times} == times
