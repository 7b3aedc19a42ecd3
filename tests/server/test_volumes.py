"""A Realm's data on the host's disk: it lasts, nobody else reads it, and what was changed or is old is refused. And its
program, which is encrypted, too."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine import DOOR, Machine, files_with
from outside import Outside
from user import User, await_log

from testbed.door import Door
from vambrace.attest.policy import Policy
from vambrace.client.host import Host
from vambrace.client.realm import Realm
from vambrace.emulator import qemu
from vambrace.emulator.qemu import BROKER
from vambrace.emulator.server import Server
from vambrace.errors import DomainError
from vambrace.image.base import RuntimeBase
from vambrace.image.build import key_file
from vambrace.image.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "guest/agent"))

from vambrace_agent.storage import Layout  # noqa: E402

CUTS = int(os.environ.get("VAMBRACE_SOAK_CUTS", "20"))
PROGRAM = b"confirms each new one when it is on the disk"  # in its text
MIB = 1 << 20
KEY, FILES = "tests/volume/records", "tests/key/files"

FLIP = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
place = int(sys.argv[2]) + 100
byte = os.pread(fd, 1, place)
os.pwrite(fd, bytes([byte[0] ^ 1]), place)
"""


def image(user: User, outside: Outside, *words: str) -> Path:
    """Of a program that keeps records on a volume, and has scratch space."""
    folder = user.home / "image"
    folder.mkdir(exist_ok=True)
    (folder / "broker.pem").write_bytes((outside.home / "certificate.pem").read_bytes())
    command = ["python3", "keeper.py", *words]
    own = {"scratch": "32M", "memory": "48M", "encrypt": {"resource": FILES}, "percent": 0}  # of memory: it is quicker
    return user.bundle(
        {"name": "keeper", "command": command, **own},
        broker={"url": f"https://{BROKER[0]}:{BROKER[1]}", "certificate": "broker.pem"},
        volumes=[
            {"name": "records", "application": "keeper", "size": "32M", "mount": "/data/records", "key": KEY}
        ],
    )


def store(user: User, outside: Outside, bundle: Path) -> None:
    """The keys of its files and of its volume, for this image."""
    policy = Policy(measurements=frozenset({Bundle.open(bundle).measurement()})).table()
    with outside.client(user) as client:
        client.put(FILES, key_file(bundle, FILES).read_bytes(), policy)
        client.put(KEY, None, policy)


@contextmanager
def started(user: User, bundle: Path) -> Iterator[Realm]:
    realm = user.create(bundle, name="keeper")
    try:
        realm.verify()
        realm.approve()
        begun = time.monotonic()
        realm.start()
        print(f"{time.monotonic() - begun:.1f} s from the start to ready")
        yield realm
    finally:
        realm.abandon()


def failure(user: User, bundle: Path) -> str:
    """Why a Realm of this image does not come to its applications."""
    with pytest.raises(DomainError) as caught, started(user, bundle):
        pass
    return caught.value.message


def said(realm: Realm, word: bytes) -> dict[str, str]:
    lines = await_log(realm, "keeper", word).decode().splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def disk(user: User) -> str:
    return f"/state/host/lasting/{user.owner.personalization().hex()}/records.disk"


def test_a_volume_s_life(user: User, server: Server, tmp_path: Path) -> None:
    with Outside(tmp_path / "broker", user, server.broker) as outside, Door(server) as host:
        bundle = image(user, outside)
        store(user, outside, bundle)
        with started(user, bundle) as realm:
            first = said(realm, b"\ndone")
            nothing = "No such file or directory"
            assert (first["records"], first["file"], first["scratch"]) == (nothing, nothing, "[]")
            canary = first["canary"]
            for needle in (canary.encode(), PROGRAM):
                assert files_with(server, host, needle) == [], "what a Realm wrote, or runs, is on the host's disk"
            # An end in peace: nothing of it waits in the journal, to be written over what is changed below.
            assert realm.finish().state == "succeeded"
        kept = disk(user)
        place = Layout(32 * MIB).data + int(first["place"])
        assert host.shell(f"busybox cp {kept} /state/older").code == 0
        # A bit of one file is flipped. What else is there stays as it was.
        flipped = host.python(FLIP, kept, str(place))
        assert flipped.code == 0, flipped.output
        with started(user, bundle) as realm:
            second = said(realm, b"\ndone")
            assert (second["records"], second["file"], second["scratch"]) == ("1", "Input/output error", "[]")
            assert second["kept"] == "2"

        # An older copy, as an operator could put it back.
        assert host.shell(f"busybox mv /state/older {kept}").code == 0
        assert "volume records: the host gives an older copy of it" in failure(user, bundle)

        # Its broker does not release its key to this image any more.
        with outside.client(user) as client:
            client.put(KEY, None, Policy(measurements=frozenset({bytes(32)})).table())
        assert "volume records: the broker refuses: the secret is not for this Realm" in failure(user, bundle)
        (volume,) = user.host.volumes()
        assert (volume.name, volume.size, volume.domain) == ("records", 32 * MIB, "")
        user.host.remove_volume(volume.owner, volume.name)
        assert user.host.volumes() == []


@pytest.mark.soak
def test_power_cuts_lose_nothing_that_was_kept(machine: Machine, base: RuntimeBase, tmp_path: Path) -> None:
    """The power goes at a random moment while records are written. Each that its program confirmed is there after."""
    chance = random.Random(2026)
    user = User(tmp_path, machine.run(DOOR), base)
    kept = 0
    for cut in range(CUTS):
        server = machine.run(DOOR)
        access = server.access()  # on another port
        user.host = Host(access.url, access.certificate, access.key, access.ca)
        with Outside(tmp_path / "broker", user, server.broker) as outside:
            bundle = image(user, outside, "appending")
            if not cut:
                store(user, outside, bundle)
            try:
                realm = user.create(bundle, name="keeper")
                realm.verify()
                realm.approve()
                realm.start()
                here = said(realm, b"kept: ")
                records = here["records"].split(",")
                assert records == [str(number + 1) for number in range(len(records))] or not kept
                assert len(records) >= kept, (cut, kept, here)
                time.sleep(chance.uniform(0, 4))
                _, text, _ = realm.logs("keeper", 0)
                kept = max(int(number) for number in re.findall(rb"kept: (\d+)\n", text))
                print(f"cut {cut}: {len(records)} records found, {kept} confirmed")
            finally:
                pid = qemu.running(server.home)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                assert qemu.wait_gone(pid, 20)
