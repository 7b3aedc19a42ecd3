"""One user: an owner, what it needs to reach the server and to judge its evidence, and its images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from vambrace.attest.owner import OwnerIdentity
from vambrace.client.context import Context
from vambrace.client.host import Host
from vambrace.client.realm import Realm
from vambrace.client.trust import Trust
from vambrace.debian.cache import Cache
from vambrace.debian.initrd import cpio
from vambrace.emulator.server import Server
from vambrace.image.base import RuntimeBase
from vambrace.image.build import build_bundle, read_attested_manifest
from vambrace.image.prepare import environments

PROGRAMS = Path(__file__).parent / "programs"


class User:
    def __init__(self, home: Path, server: Server, base: RuntimeBase, references: Path | None = None) -> None:
        access = server.access()
        self.home = home
        self.base = base
        self.platform_owner = access.platform_owner
        self.context = Context(home / "user")
        OwnerIdentity.create(self.context.owner)
        self.owner = OwnerIdentity.load(self.context.owner)
        self.stranger = OwnerIdentity.create(home / "stranger")
        self.reach(server)
        self.trust = Trust.load(access.vendor_root, references or access.references)

    def reach(self, server: Server) -> None:
        """That server, which was started anew: on another port, perhaps."""
        access = server.access()
        self.server = server
        self.host = Host(access.url, access.certificate, access.key, access.ca)

    def bundle(self, *applications: dict[str, object], init: str | None = None, **manifest: object) -> Path:
        """An image of programs of this folder, each given by ``name`` and what differs in its manifest.

        With ``init`` the text of another program takes the place of the measured initrd's.
        """
        folder = self.home / "image"
        folder.mkdir(exist_ok=True)
        (folder / "owner.pem").write_text(self.owner.certificate_pem)
        programs = [_application(**application) for application in applications or ({"name": "worker"},)]
        content = {"name": "test", "owner": "owner.pem", "system": {"memory": "192M"}, "applications": programs}
        (folder / "manifest.yaml").write_text(yaml.safe_dump({**content, **manifest}))
        base = self.base
        if init is not None:
            tree = folder / "initrd"
            tree.mkdir(exist_ok=True)
            (tree / "init").write_text(init)
            (tree / "init").chmod(0o755)
            initrd = folder / "initrd.img"
            # Of two archives in a row the later one's files are the ones that stay.
            initrd.write_bytes(base.initrd.read_bytes() + cpio(tree))
            base = dataclasses.replace(base, initrd=initrd)
        out = folder / "image.vambrace"
        read = read_attested_manifest(folder / "manifest.yaml")
        build_bundle(read, out, base, environments(read, base, Cache(), PROGRAMS / "test.yaml"))
        return out

    def create(self, bundle: Path, **options: object) -> Realm:
        return Realm.create(bundle, host=self.host, owner=self.owner, trust=self.trust, context=self.context, **options)

    @contextmanager
    def started(self, bundle: Path, **options: object) -> Iterator[Realm]:
        """One whose token its owner has verified; nothing of it is left in the end."""
        realm = self.create(bundle, **options)
        try:
            realm.verify()
            realm.approve()
            realm.start()
            yield realm
        finally:
            realm.abandon()


def _application(name: str, **other: object) -> dict[str, object]:
    """What is None in ``other`` is left out."""
    described = {
        "name": name,
        "files": str(PROGRAMS / name),
        "command": ["python3", f"{name}.py"],
        "memory": "32M",
        "percent": 50,
        **other,
    }
    return {key: value for key, value in described.items() if value is not None}


@dataclass(frozen=True)
class Pair:
    """Two running Realms of one image. Each has made a secret of its own, which is in ``secrets``."""

    user: User
    server: Server
    bundle: Path
    realms: tuple[Realm, Realm]
    secrets: tuple[bytes, bytes]


def await_log(realm: Realm, application: str, word: bytes, seconds: float = 240) -> bytes:
    """What ``application`` has said so far, once it has said ``word``."""
    deadline = time.monotonic() + seconds
    said, offset = b"", 0
    while word not in said:
        offset, data, ended = realm.logs(application, offset)
        said += data
        assert word in said or (not ended and time.monotonic() < deadline), said
        if not data:
            time.sleep(0.5)
    return said


def await_applications(realm: Realm, states: Sequence[str], seconds: float = 240) -> list[dict[str, object]]:
    """The status of the applications, once they are in these ``states``."""
    deadline = time.monotonic() + seconds
    while True:
        found: list[dict[str, object]] = realm.status()["applications"]
        if [application["state"] for application in found] == list(states):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
