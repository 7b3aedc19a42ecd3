"""A percentage that the host holds within its owner's bounds, while the program's working set changes."""

from __future__ import annotations

import pytest
from machine import eventually
from user import User, await_log

from vambrace.attest.owner import Bounds

BOUNDS = Bounds(30, 70, 50)


@pytest.mark.soak
def test_a_working_set_that_changes(user: User) -> None:
    """Up while all that is used fits into the window, down when it does not; never outside of the bounds."""
    realm = user.create(user.bundle({"name": "shifter", "memory": "64M", "percent": 60}))
    seen: list[int] = []

    def percent() -> int:
        system, shifter = realm.stats()
        assert system["percent"] >= shifter["percent"], "the system's zone follows"
        seen.append(shifter["percent"])
        return seen[-1]

    try:
        realm.verify()
        realm.approve()
        realm.start()
        await_log(realm, "shifter", b"small\n")
        realm.auto("shifter", BOUNDS)
        # 4 MiB and what Python itself uses: the window of 70 %, 19 MiB, is enough.
        assert eventually(lambda: percent() == BOUNDS.highest, 170), (seen, realm.stats()[1]["auto"])
        await_log(realm, "shifter", b"large\n")
        # 34 MiB of 64.
        assert eventually(lambda: percent() <= 50, 300), (seen, realm.stats()[1]["auto"])
        assert all(BOUNDS.lowest <= one <= BOUNDS.highest for one in seen), seen
        auto = realm.stats()[1]["auto"]
        assert auto is not None and not auto["error"] and not auto["idle"]
        # The owner's own word ends it.
        realm.encrypt("shifter", 20)
        assert realm.stats()[1]["auto"] is None and percent() == 20
    finally:
        realm.abandon()
