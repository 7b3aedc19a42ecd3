"""What takes long: power cuts at any moment, and many Realms one after the other. Run by ``make soak``."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from machine import DOOR, Machine, one_waits, processes
from user import User

from testbed.door import Door
from vambrace.image.base import RuntimeBase

pytestmark = pytest.mark.soak

CUTS = int(os.environ.get("VAMBRACE_SOAK_CUTS", "20"))
REALMS = int(os.environ.get("VAMBRACE_SOAK_REALMS", "20"))

STATE = """
import os, sys
print(len(os.listdir(f"/proc/{sys.argv[1]}/fd")))
print(next(int(line.split()[1]) >> 10 for line in open("/proc/meminfo") if line.startswith("MemAvailable")))
"""


def run_one(user: User, bundle: Path, results: Path) -> None:
    """A Realm from its image to its results."""
    with user.started(bundle) as realm:
        info = realm.finish(results)
        assert info.state == "succeeded" and list(results.rglob("processors.json"))


def test_power_cuts(machine: Machine, base: RuntimeBase, tmp_path: Path) -> None:
    """The power goes at a random moment of a Realm's life. The machine comes up again as the same platform, with no
    Realm running, with what was stored whole or not there, and still fit to run one."""
    chance = random.Random(2026)
    server = machine.run(DOOR)
    user = User(tmp_path, server, base)
    bundle = user.bundle({"name": "worker", "results": ["processors.json"]})
    platform = server.api.get("/v1/platform")
    for cut in range(CUTS):
        moment = chance.uniform(0, 40)
        begin = time.monotonic()
        with machine.power_cut():
            realm = user.create(bundle, name=f"cut-{cut}")
            realm.verify()
            realm.approve()
            while time.monotonic() < begin + moment and not realm.info().final:
                time.sleep(0.2)
        server = machine.run(DOOR)
        assert server.api.get("/v1/platform") == platform
        user.reach(server)
        assert all(info.final for info in user.host.domains())
        with Door(server) as door:
            assert one_waits(door)
        # What the host has answered is on its disk.
        assert user.host.domain(realm.uuid).state in ("failed", "succeeded")
    run_one(user, bundle, tmp_path / "results")


def test_many_realms(machine: Machine, base: RuntimeBase, tmp_path: Path) -> None:
    """Realm after Realm: processes, descriptors and memory of the host come back each time."""
    server = machine.run(DOOR)
    user = User(tmp_path, server, base)
    bundle = user.bundle({"name": "worker", "results": ["processors.json"]})
    with Door(server) as door:

        def state() -> tuple[int, int]:
            """Descriptors of the daemon, and MiB that the host has to give."""
            (daemon,) = processes(door, "vambrace.host")
            done = door.python(STATE, str(daemon))
            assert done.code == 0, done.output
            descriptors, free = done.output.split()
            return int(descriptors), int(free)

        run_one(user, bundle, tmp_path / "results-first")
        before = state()
        for number in range(REALMS):
            run_one(user, bundle, tmp_path / f"results-{number}")
            assert one_waits(door)
        after = state()
    assert after[0] <= before[0] + 2, (before, after)
    assert after[1] > before[1] - 64, (before, after)
