"""A disk with Debian on it as a Realm: its services are applications, and its root has no right outside of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from machine import files_with
from outside import Outside
from records import place, store
from user import PROGRAMS, User, await_applications, await_log

from testbed.door import Door
from vambrace.attest.events import Event
from vambrace.client.realm import Realm
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.system import make_ext4, stock_system
from vambrace.debian.tools import run
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.server import Server
from vambrace.image.base import RuntimeBase, runtime_base

PORT = 80
KEY = "tests/key/disk"
WORD = 'a "word" of 100 %'
#: What nothing that is tested here needs, so that less is sent to the server.
UNUSED = ("usr/lib/udev", "usr/lib/apt", "usr/lib/aarch64-linux-gnu/perl-base", "usr/lib/aarch64-linux-gnu/gconv")
SERVICE = f"""[Unit]
Description=Answers one client
[Service]
ExecStart=/usr/local/bin/service {PORT} /results/answering/report
"""
TASK = """[Unit]
Description=Works at the second attempt
[Service]
Type=oneshot
User=daemon
RemainAfterExit=yes
PrivateTmp=no
ProtectSystem=full
ExecStart=/bin/sh -c 'echo "attempt of $(id -un)"; test -e /var/tmp/once || { touch /var/tmp/once; exit 3; }; echo done'
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock system with two services, none of them enabled, as a qcow2 file."""
    folder = tmp_path_factory.mktemp("disk")
    cache = Cache()
    system = stock_system(Archive(cache.root / "archive", LOCK_FILE), cache)
    tree, files = folder / "tree", folder / "files"
    shutil.copytree(system.tree, tree, symlinks=True)
    for path in UNUSED:
        shutil.rmtree(tree / path, ignore_errors=True)
    units = files / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "answering.service").write_text(SERVICE)
    (units / "task.service").write_text(TASK)
    (files / "usr/local/bin").mkdir(parents=True)
    program = files / "usr/local/bin/service"
    run(["aarch64-linux-gnu-gcc", "-O2", "-static", "-Wall", "-Werror", "-o", program, PROGRAMS / "service/service.c"])
    make_ext4([tree, files], folder / "root.ext4", slack=4 << 20)
    run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c", folder / "root.ext4", folder / "disk.qcow2"])
    return folder / "disk.qcow2"


@pytest.fixture(scope="module")
def system_base() -> RuntimeBase:
    cache = Cache()
    return runtime_base(Archive(cache.root / "archive", LOCK_FILE), cache, systems=True)


def unit(name: str, **other: object) -> dict[str, object]:
    return {"name": name, "files": None, "command": None, **other}


def test_a_disk_with_its_services(server: Server, system_base: RuntimeBase, disk: Path, tmp_path: Path) -> None:
    """It is encrypted for a key of the broker's."""
    user = User(tmp_path, server, system_base)
    with Outside(tmp_path / "broker", user, server.broker) as outside:
        broker = place(user, outside)
        disk = disk.rename(tmp_path / "image/disk.qcow2")
        bundle = user.bundle(
            unit("answering", unit="answering.service", memory="32M", publish=[PORT], results=["report"],
                 environment={"WORD": WORD}),
            unit("working", unit="task.service", memory="16M", restarts=1),
            vm={"disk": "disk.qcow2", "encrypt": {"resource": KEY}},
            broker=broker,
            system={"memory": "256M"},
        )  # fmt: skip
        store(user, outside, bundle)
        realm = user.create(bundle, name="debian")
        try:
            live(realm, tmp_path / "results")
        finally:
            realm.abandon()
    with Door(server) as host:
        assert files_with(server, host, b"answering.service") == [server.state.name], "it is in the configuration"
        for needle in (SERVICE.splitlines()[1].encode(), b"attempt of"):
            assert files_with(server, host, needle) == []
    [report] = list((tmp_path / "results").rglob("report"))
    lines = dict(line.split(": ", 1) for line in report.read_text().splitlines())
    assert {place.split("=")[0] for place in lines.pop("pages").split()} == {"1"}, "its memory is its zone's"
    # Not all of the Realm's, whatever it does: something is left to the agent.
    assert 48 << 20 < int(lines.pop("limit")) <= (48 << 20) + (256 << 20) - (32 << 20)
    assert lines == {
        "vsock": "Operation not permitted",
        "memory": "No such file or directory",
        "port": "No such file or directory",
        "node": "Operation not permitted",
        "module": "Operation not permitted",
        "kexec": "Operation not permitted",
        "setting": "Permission denied",
        "group": "Permission denied",
        "bound": "Permission denied",
        "namespace": lines["namespace"],
        "agent": "No such file or directory",
        "processes": "own",
    }
    assert lines["namespace"] != "open"


def live(realm: Realm, results: Path) -> None:
    """From its creation to its end."""
    began = time.monotonic()
    realm.verify()
    realm.approve()
    realm.start()
    print(f"{time.monotonic() - began:.1f} s from creation to the start of the system")
    assert b"serving as 0\n" in await_log(realm, "answering", b"serving")
    print(f"{time.monotonic() - began:.1f} s until the service serves")
    assert b"attempt of daemon\nattempt of daemon\ndone\n" in await_log(realm, "working", b"done")
    with realm.connect(PORT) as stream:
        stream.settimeout(120)
        assert stream.makefile("rb").read() == WORD.encode()
    found = await_applications(realm, ["succeeded", "succeeded"])
    assert [(each["exit_code"], each["restarts"]) for each in found] == [(0, 0), (0, 1)]
    assert b"reported\n" in await_log(realm, "answering", b"reported")
    starts = [event.text for event in realm.events(realm.attest()) if event == Event(0, "", event.text)]
    assert sorted(starts) == ["start answering", "start working", "start working"]
    realm.finish(results)
    print(f"{time.monotonic() - began:.1f} s until the end")
