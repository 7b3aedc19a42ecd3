"""How the agent finds PCI devices and whom it gives them to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from vambrace_agent import AgentError, devices
from vambrace_agent.settings import Application, Device

NVME, NETWORK = "010802", "020000"


def device(name: str, code: str = "", identity: str = "", application: str = "", address: str = "") -> Device:
    return Device(
        {"name": name, "code": code, "identity": identity, "application": application, "address": address}
    )


def application() -> Application:
    fields = {"name": "storage", "command": ["x"], "environment": {}, "directory": "/app/storage", "restarts": 0}
    return Application(1, {**fields, "results": [], "memory": 1 << 25})


def add(bus: Path, address: str, code: str, identity: str = "1b36:0010") -> Path:
    folder = bus / address
    folder.mkdir(parents=True)
    vendor, number = identity.split(":")
    for name, text in (("class", code), ("vendor", vendor), ("device", number)):
        (folder / name).write_text(f"0x{text}\n")
    return folder


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    bus = tmp_path / "bus"
    disk = add(bus, "0000:00:01.0", NVME)
    # As Linux has it: the disk and its generic character device stand below the controller.
    for part, subsystem in (("", "nvme"), ("nvme0n1", "block"), ("nvme0n1/nvme0n1p1", "block"), ("ng0n1", "generic")):
        (disk / "nvme/nvme0" / part).mkdir(parents=True)
        (disk / "nvme/nvme0" / part / "dev").touch()
        (disk / "nvme/nvme0" / part / "subsystem").symlink_to(tmp_path / subsystem)
    card = add(bus, "0000:00:02.0", NETWORK, "1af4:1041")
    (card / "virtio5/net/eth0").mkdir(parents=True)
    add(bus, "0000:00:03.0", NVME, "144d:a80a")
    return bus


def test_devices_of_a_kind_are_in_the_configuration_s_order(bus: Path) -> None:
    wanted = [device("card", code="0200"), device("one", code="010802"), device("other", code="010802")]
    assert devices.find(wanted, str(bus)) == ["0000:00:02.0", "0000:00:01.0", "0000:00:03.0"]
    assert devices.find([device("x", identity="144d:a80a")], str(bus)) == ["0000:00:03.0"]
    with pytest.raises(AgentError, match="no device gpu"):
        devices.find([*wanted, device("gpu", code="03")], str(bus))


def test_an_application_gets_the_files_of_its_device_alone(
    bus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owners.update({path: (uid, gid)}))
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("nvme0", "nvme0n1", "nvme0n1p1"):
        (dev / name).touch(mode=0o666)
    said: list[tuple[str, ...]] = []
    wanted = [
        device("disk", code="010802", application="storage"),
        device("card", code="0200", address="192.0.2.7/24"),
    ]
    devices.hand_out(wanted, [application()], bus=str(bus), dev=str(dev), ip=lambda *words: said.append(words))
    uid = application().uid
    assert owners == {f"{dev}/nvme0n1": (uid, uid), f"{dev}/nvme0n1p1": (uid, uid)}
    assert stat.S_IMODE((dev / "nvme0n1").stat().st_mode) == 0o600
    assert said == [("address", "add", "192.0.2.7/24", "dev", "eth0"), ("link", "set", "eth0", "up")]


def test_a_device_of_which_no_driver_makes_anything_is_an_error(bus: Path) -> None:
    lost = [device("lost", identity="144d:a80a", application="storage")]
    with pytest.raises(AgentError, match="made anything of device lost"):
        devices.hand_out(lost, [application()], bus=str(bus), seconds=0)
