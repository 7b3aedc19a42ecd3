"""A Realm's data on the host's disk: it lasts, nobody else reads it, and what was changed or is old is refused. And its
program, which is encrypted, too."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from database import KEY as DATABASE
from database import PORT, database
from machine import DOOR, Machine, files_with, holds
from outside import Outside
from records import KEY, Records, image, place, said, store
from transactions import Transactions, await_database, open_database
from user import User
from vambrace_agent.storage import Layout

from testbed.door import Door
from vambrace.attest.policy import Policy
from vambrace.client.realm import Realm
from vambrace.emulator.server import Server
from vambrace.errors import DomainError
from vambrace.image.base import RuntimeBase

CUTS = int(os.environ.get("VAMBRACE_SOAK_CUTS", "20"))
SERVER_CUTS = max(1, CUTS // 10)  # each takes minutes: test_database.py has as many as are wanted
PROGRAM = b"confirms each new one when it is on the disk"  # in its text
MIB = 1 << 20

FLIP = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
place = int(sys.argv[2]) + 100
byte = os.pread(fd, 1, place)
os.pwrite(fd, bytes([byte[0] ^ 1]), place)
"""


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


def disk(user: User) -> str:
    return f"/state/host/lasting/{user.owner.personalization().hex()}/records.disk"


def test_a_volume_s_life(user: User, server: Server, tmp_path: Path) -> None:
    with Outside(tmp_path / "broker", user, server.broker) as outside, Door(server) as host:
        bundle = image(user, outside)
        store(user, outside, bundle, KEY)
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
def test_power_cuts_of_a_database(
    machine: Machine, containers: RuntimeBase, postgresql: str, tmp_path: Path
) -> None:
    """A database in a Realm, and another Realm with records of its own: both have all that they had."""
    chance = random.Random(2026)
    user = User(tmp_path, machine.run(DOOR), containers)
    transactions, records = Transactions(canary := f"canary-{os.urandom(16).hex()}"), Records()
    for cut in range(SERVER_CUTS + 1):
        server = machine.run(DOOR)
        user.reach(server)
        with Outside(tmp_path / "broker", user, server.broker) as outside, contextlib.ExitStack() as stack:
            if not cut:
                bundles = two_images(user, outside, postgresql)
            first, second = [stack.enter_context(user.started(bundle, name=bundle.stem)) for bundle in bundles]
            connect = functools.partial(open_database, first.forward(PORT).address[1])
            with await_database(connect, 240) as session:
                if not cut:
                    transactions.begin(session)
                found = transactions.check(session), records.check(second)
            print(f"after {cut} cuts: {found[0]} transactions and {found[1]} records are there", flush=True)
            if cut == SERVER_CUTS:
                break
            with machine.power_cut(), transactions.writing(connect):
                time.sleep(chance.uniform(0, 8))
                records.note(second)
            transactions.join()
            print(f"{len(transactions.acknowledged)} and {records.kept} are acknowledged", flush=True)
        assert not holds(server.state, canary.encode()), "what the database wrote is on the host's disk"


def two_images(user: User, outside: Outside, postgresql: str) -> list[Path]:
    """Of the database, and of the keeper of records; the broker has their keys."""
    made = user.bundle(**database(postgresql), broker=place(user, outside))
    bundles = [made.rename(made.with_name("database.vambrace")), image(user, outside, "appending")]
    for bundle, resource in zip(bundles, (DATABASE, KEY), strict=True):
        store(user, outside, bundle, resource)
    return bundles


@pytest.mark.soak
def test_power_cuts_lose_nothing_that_was_kept(machine: Machine, base: RuntimeBase, tmp_path: Path) -> None:
    """The power goes at a random moment while records are written. Each that its program confirmed is there after."""
    chance = random.Random(2026)
    user = User(tmp_path, machine.run(DOOR), base)
    records = Records()
    for cut in range(CUTS):
        server = machine.run(DOOR)
        user.reach(server)
        with Outside(tmp_path / "broker", user, server.broker) as outside:
            bundle = image(user, outside, "appending")
            if not cut:
                store(user, outside, bundle, KEY)
            with user.started(bundle, name="keeper") as realm:
                found = records.check(realm)
                with machine.power_cut():
                    time.sleep(chance.uniform(0, 4))
                    records.note(realm)
                print(f"cut {cut}: {found} records found, {records.kept} confirmed")
