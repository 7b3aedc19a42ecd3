"""PCI devices of the machine, used by Realms with their stock drivers, and kept where their guests have let them."""

from __future__ import annotations

import json

import pytest
from user import User, await_log

from vambrace.emulator.plugged import ADDRESS
from vambrace.errors import CapacityError, DomainError

DISK, CARD = {"name": "disk", "kind": "nvme"}, {"name": "card", "kind": "network", "address": ADDRESS}


def test_realms_use_devices_that_they_have_alone(user: User) -> None:
    bundle = user.bundle(
        {"name": "storage", "memory": "48M", "pins": "1M"},
        {"name": "caller", "percent": 0},
        devices=[{**DISK, "application": "storage"}, CARD],
    )
    with user.create(bundle, name="first") as first:
        first.verify()
        first.approve()
        first.start()
        assert await_log(first, "caller", b"\n") == b"the same came back\n"
        found = json.loads(await_log(first, "storage", b"\n"))
        assert found == {"same": True}
        with pytest.raises(CapacityError, match="free: 0 of 2 devices; first holds 0000:01:00.0 nvme,0000:02:00.0 net"):
            user.create(bundle, name="second")
        owned = {owner.name: owner.items.get("devices") for owner in user.host.partition().owners}
        assert owned["first"] == ("0000:01:00.0 nvme", "0000:02:00.0 network")
        found = user.host.verify_partition()
        assert found.passed, found.findings
        assert first.stats()[0]["pinned"]
        with pytest.raises(DomainError, match=r"100 % cannot be encrypted: \d+ pages are pinned"):
            first.encrypt("storage", 100)
