"""A Realm of the emulated server and its broker outside: through agent, monitor, daemon and network, and back."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import DOOR, Machine, door, eventually, pages, sealing_keys
from outside import Outside
from user import PROGRAMS, User, await_log

from vambrace.attest.policy import Policy
from vambrace.emulator.qemu import BROKER
from vambrace.emulator.server import Server
from vambrace.image.bundle import Bundle

# What the host's memory must not hold, and how it is recognized in a program's output.
PASSWORD = os.urandom(48)
DIGEST = hashlib.sha256(PASSWORD).hexdigest()
SECRETS = [
    {"name": "password", "application": "asker", "resource": "tests/secret/password"},
    {"name": "others", "application": "asker", "resource": "tests/secret/others"},
]


@pytest.fixture
def outside(tmp_path: Path, user: User) -> Iterator[Outside]:
    with Outside(tmp_path / "broker", user, user.server.broker) as outside:
        yield outside


def test_a_secret_for_a_realm(user: User, outside: Outside, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image/broker.pem").write_bytes((outside.home / "certificate.pem").read_bytes())
    place = f"{BROKER[0]}:{BROKER[1]}"
    bundle = user.bundle(
        {"name": "asker", "command": ["python3", "asker.py", "password", "others", "unknown"]},
        {"name": "stranger", "files": str(PROGRAMS / "asker"), "command": ["python3", "asker.py", "others"]},
        broker={"url": f"https://{place}", "certificate": "broker.pem", "secrets": SECRETS},
        sealing={"to": "owner", "version": 1},
    )  # fmt: skip
    image = Bundle.open(bundle)
    policy = Policy(measurements=frozenset({image.measurement()}), owners=frozenset({image.config.personalization()}))
    with outside.client(user) as client:
        client.put("tests/secret/password", PASSWORD, policy.table())
        client.put("tests/secret/others", b"x", Policy(measurements=frozenset({bytes(32)})).table())
    realm = user.create(bundle, name="asking")
    try:
        realm.verify()
        realm.approve()
        begun = time.monotonic()
        realm.start()
        said = await_log(realm, "asker", b"again: ").decode()
        print(f"{time.monotonic() - begun:.1f} s from the start to the second secret")
        assert f"password: {DIGEST}\n" in said
        assert "others: the broker refuses: the secret is not for this Realm, or there is none\n" in said
        assert "unknown: this application is granted no such secret\n" in said
        assert b"others: this application is granted no such secret\n" in await_log(realm, "stranger", b"others")
        # Nobody but the Realm has read it: outside of its window no page of the host holds it.
        assert not pages_beyond(user, tmp_path)
        entries = outside.log("release")
        assert [e["outcome"] for e in entries][:2] == ["granted", "refused"]
        assert "measurement" in entries[1]["reason"]
        assert {e["subject"]["measurement"] for e in entries} == {image.measurement().hex()}
        assert len(outside.log("attest")) == 1  # a session serves several requests
        # What it asks for last does not arrive before it is gone.
        outside.held = True
        asked = len(outside.log("release"))
        time.sleep(3)
        realm.abandon()
        assert eventually(lambda: outside.cut == 1, 30)
        assert len(outside.log("release")) == asked
    finally:
        realm.abandon()
    sealed = re.search(r"^sealed: (\S+)$", said, re.MULTILINE)[1]
    stays_sealed(user, sealed)


def stays_sealed(user: User, sealed: str) -> None:
    """The next version of the image opens it in its application of the same name, and in no other; what it seals
    itself is of its own version."""
    bundle = user.bundle(
        {"name": "asker", "environment": {"SEALED": sealed}},
        {"name": "stranger", "files": str(PROGRAMS / "asker"), "command": ["python3", "asker.py"],
         "environment": {"SEALED": sealed}},
        sealing={"to": "owner", "version": 2},
    )  # fmt: skip
    with user.started(bundle, name="next-version") as realm:
        said = await_log(realm, "asker", b"\nsealed: ").decode()
        assert "unsealed: kept from version to version\n" in said
        own = re.search(r"^sealed: (\S+)$", said, re.MULTILINE)[1]
        assert base64.b64decode(own[:8])[:5] == b"\x01" + (2).to_bytes(4, "big")
        assert b"unsealed: this was sealed by somebody else" in await_log(realm, "stranger", b"\nsealed")


def test_sealing_keys(server: Server, machine: Machine) -> None:
    """Root of this very host gets them, as the monitor does: those of this host, and the same each time."""
    with door.Door(server) as host:
        keys = sealing_keys(host)
    assert len(set(keys)) == 3 and all(len(key) == 64 for key in keys)
    machine.sealing_keys[DOOR.name] = keys


def pages_beyond(user: User, folder: Path) -> bool:
    """Whether the host's memory holds the secret in more places than the Realm's window may."""
    window = max(16, 64 * 3)  # three zones; each at least 64 pages may be plaintext
    return pages(user.server, folder, PASSWORD)[0] > window
