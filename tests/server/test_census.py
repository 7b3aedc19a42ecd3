"""At no moment is more of a zone in plaintext than its window, whatever its program and its owner do: counted in dumps
of physical memory."""

from __future__ import annotations

import os
import random
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from machine import HOST_BOUND, dumped
from user import User, await_log

from testbed import census
from vambrace.emulator.memory import pages_with
from vambrace.emulator.server import Server

DUMPS = int(os.environ.get("VAMBRACE_SOAK_DUMPS", "24"))


def test_windows_hold_right_after_raising_and_lowering(user: User, server: Server, tmp_path: Path) -> None:
    look(user, server, tmp_path, [75, 25, 90], moments=0)


@pytest.mark.soak
def test_windows_hold_at_random_moments(user: User, server: Server, tmp_path: Path) -> None:
    percents = [50, 95, 25, 90, 60, 75]
    look(user, server, tmp_path, percents * -(-DUMPS // (3 * len(percents))), moments=2)


def look(user: User, server: Server, folder: Path, percents: list[int], moments: int) -> None:
    """Dump the memory when each of ``percents`` has been set, and at so many random moments after that."""
    with user.started(user.bundle({"name": "marked", "memory": "64M", "percent": 50})) as realm:
        said = await_log(realm, "marked", b"\n")
        told = re.fullmatch(rb"own ([0-9a-f]{32}) kernel ([0-9a-f]{32})\n", said)
        assert told, said
        own, kernels = (bytes.fromhex(word.decode()) for word in told.groups())
        for before, percent in pairwise([50, *percents]):
            realm.encrypt("marked", percent)
            windows = {zone["name"]: zone["window"] for zone in realm.stats()}
            assert windows["marked"] == (100 - percent) * (64 << 20 >> 12) // 100
            for moment in range(1 + moments):
                if moment:
                    time.sleep(random.uniform(0, 3))
                with dumped(server, folder) as dump:
                    found, system = census.take(dump, own), pages_with(dump, kernels)
                print(f"{percent} %, moment {moment}: {found}, {len(system)} in the system's; windows {windows}")
                # The zone's and what may be a copy on the host, each by itself.
                assert found.pages <= windows["marked"]
                assert found.copies <= HOST_BOUND
                assert len(system) <= windows["system"] + HOST_BOUND
                # The program uses 10,000 of 16,384 pages at random: the search finds a good part of what may be there,
                # but a window that has grown fills with its faults only.
                assert found.pages > (min(windows["marked"], 10_000) // 5 if percent >= before else 0)
        realm.destroy()
        with dumped(server, folder) as dump:
            assert census.take(dump, own) == census.Census(0, 0, 0)
            assert pages_with(dump, kernels) == []
