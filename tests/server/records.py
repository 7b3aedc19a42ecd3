"""A Realm that keeps records on a volume, confirms each one, and has scratch space and encrypted files beside
(programs/keeper), and what its user knows of it."""

from __future__ import annotations

import re
from pathlib import Path

from outside import Outside
from user import User, await_log

from vambrace.attest.policy import Policy
from vambrace.client.realm import Realm
from vambrace.emulator.qemu import BROKER
from vambrace.image.build import key_file
from vambrace.image.bundle import Bundle

KEY, FILES = "tests/volume/records", "tests/key/files"


def image(user: User, outside: Outside, *words: str) -> Path:
    """Of a program that keeps records on a volume, and has scratch space."""
    command = ["python3", "keeper.py", *words]
    own = {"scratch": "32M", "memory": "48M", "encrypt": {"resource": FILES}, "percent": 0}  # of memory: it is quicker
    return user.bundle(
        {"name": "keeper", "command": command, **own},
        broker=place(user, outside),
        volumes=[
            {"name": "records", "application": "keeper", "size": "32M", "mount": "/data/records", "key": KEY}
        ],
    )


def place(user: User, outside: Outside) -> dict[str, str]:
    """The broker, as a manifest of the user's has it."""
    folder = user.home / "image"
    folder.mkdir(exist_ok=True)
    (folder / "broker.pem").write_bytes((outside.home / "certificate.pem").read_bytes())
    return {"url": f"https://{BROKER[0]}:{BROKER[1]}", "certificate": "broker.pem"}


def store(user: User, outside: Outside, bundle: Path, *volumes: str) -> None:
    """The keys of its files, where these are encrypted, and of its ``volumes``, for this image."""
    image = Bundle.open(bundle)
    policy = Policy(measurements=frozenset({image.measurement()})).table()
    with outside.client(user) as client:
        for resource in (disk.key for disk in image.config.disks if disk.key):
            client.put(resource, key_file(bundle, resource).read_bytes(), policy)
        for resource in volumes:
            client.put(resource, None, policy)


def said(realm: Realm, word: bytes) -> dict[str, str]:
    """What the keeper has said of each thing."""
    lines = await_log(realm, "keeper", word).decode().splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


class Records:
    """What a keeper that is ``appending`` has confirmed so far."""

    def __init__(self) -> None:
        self.kept = 0

    def check(self, realm: Realm) -> int:
        """Each of them is there when it begins; the number of those that are."""
        here = said(realm, b"kept: ")
        found = [] if here["records"] == "No such file or directory" else here["records"].split(",")
        assert found == [str(number + 1) for number in range(len(found))]
        assert len(found) >= self.kept, (self.kept, here)
        return len(found)

    def note(self, realm: Realm) -> None:
        """What it has confirmed up to now."""
        offset = 0
        while (answer := realm.logs("keeper", offset))[1]:
            offset, text, _ = answer
            self.kept = max([self.kept, *(int(number) for number in re.findall(rb"kept: (\d+)\n", text))])
