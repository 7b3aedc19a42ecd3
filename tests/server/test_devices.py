"""PCI devices of the machine, used by Realms with their stock drivers, and kept where their guests have let them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from machine import dumped, eventually
from user import Pair, User, await_log

from testbed.door import Door
from vambrace.emulator import memory, qemu
from vambrace.emulator.plugged import ADDRESS
from vambrace.emulator.server import Server
from vambrace.errors import CapacityError, DomainError

DISK, CARD = {"name": "disk", "kind": "nvme"}, {"name": "card", "kind": "network", "address": ADDRESS}
#: What the disk says of itself, and so what the outlaw has it write.
MODEL = b"QEMU NVMe Ctrl"


@pytest.fixture
def host(server: Server) -> Iterator[Door]:
    with Door(server) as door:
        yield door


def faults(host: Door) -> list[str]:
    """What the SMMU has told the host's kernel of."""
    return host.shell("dmesg | busybox grep arm-smmu-v3").output.splitlines()


def test_realms_use_devices_that_they_have_alone(user: User, host: Door) -> None:
    bundle = user.bundle(
        {"name": "storage", "memory": "48M", "pins": "96K"},
        {"name": "caller", "percent": 0},
        devices=[{**DISK, "application": "storage"}, CARD],
    )
    before = faults(host)
    with user.create(bundle, name="first") as first:
        first.verify()
        first.approve()
        first.start()
        assert await_log(first, "caller", b"\n") == b"the same came back\n"
        found = json.loads(await_log(first, "storage", b"\n"))
        assert found.pop("refused") in ("Input/output error", "nothing arrived")
        assert found == {"same": True, "again": True}
        with pytest.raises(CapacityError, match="free: 0 of 2 devices; first holds 0000:01:00.0 nvme,0000:02:00.0 net"):
            user.create(bundle, name="second")
        owned = {owner.name: owner.items.get("devices") for owner in user.host.partition().owners}
        assert owned["first"] == ("0000:01:00.0 nvme", "0000:02:00.0 network")
        found = user.host.verify_partition()
        assert found.passed, found.findings
        assert first.stats()[0]["pinned"]
        with pytest.raises(DomainError, match=r"100 % cannot be encrypted: \d+ pages are pinned"):
            first.encrypt("storage", 100)
    # What was beyond the budget was never mapped, and the SMMU has kept the disk from it.
    assert len(faults(host)) > len(before)


def test_a_device_does_not_reach_what_its_guest_has_not_mapped(
    user: User, host: Door, server: Server, pair: Pair, tmp_path: Path
) -> None:
    """The next owner of the disk has it write to another Realm's memory."""
    with dumped(server, tmp_path) as dump:
        frame = memory.pages_with(dump, pair.secrets[0])[0]
    address = qemu.RAM_BASE + frame * memory.PAGE_SIZE
    script = resources.files("vambrace.debian").joinpath("initrd.sh").read_text()
    outlaw = f"exec switch_root /root /usr/bin/python3 -I -B /app/outlaw/outlaw.py {address:#x}"
    init = script.replace('exec switch_root /root "$init"', outlaw)
    assert init != script
    before = faults(host)
    with user.create(user.bundle({"name": "outlaw"}, init=init, devices=[DISK]), name="outlaw") as realm:
        realm.verify()
        realm.approve()
        assert eventually(lambda: realm.info().state == "failed", 90), "its first program ends, and with it the guest"
    new = "\n".join(faults(host)[len(before) :])
    assert f"{address:016x}" in new, new
    with dumped(server, tmp_path) as dump, dump.open("rb") as file:
        file.seek(frame * memory.PAGE_SIZE)
        assert MODEL not in file.read(memory.PAGE_SIZE)
    assert pair.realms[0].status()["applications"]
