"""One emulated server for all tests of this folder: built (from the cache), started cold, endorsed, stopped."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vambrace.attest.owner import OwnerIdentity
from vambrace.client.context import Context
from vambrace.client.host import Host
from vambrace.client.realm import Realm
from vambrace.client.trust import Trust
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.emulator.build import LOCK_FILE
from vambrace.emulator.server import Server
from vambrace.image.base import RuntimeBase, runtime_base
from vambrace.image.build import build_bundle

PROGRAM = "import pathlib; pathlib.Path('/results/hello/out.txt').write_text('hello from a Realm')\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The vendor's key is part of OP-TEE: one vendor for all runs lets the cache keep what was built.
    cache = Cache()
    machine = Server(tmp_path_factory.mktemp("server"), port=port, cache=cache, vendor=cache.root / "test-vendor")
    machine.up(print)
    yield machine
    machine.down()


@pytest.fixture(scope="session")
def base() -> RuntimeBase:
    cache = Cache()
    return runtime_base(Archive(cache.root / "archive", LOCK_FILE), cache)


class User:
    """One owner, with what it needs to reach the server and to judge its evidence."""

    def __init__(self, home: Path, server: Server, base: RuntimeBase) -> None:
        access = server.access()
        self.home = home
        self.base = base
        self.context = Context(home / "user")
        OwnerIdentity.create(self.context.owner)
        self.owner = OwnerIdentity.load(self.context.owner)
        self.host = Host(access.url, access.certificate, access.key, access.ca)
        self.trust = Trust.load(access.vendor_root, access.references)

    def bundle(self, **manifest: object) -> Path:
        """A Realm with one small Python program; ``manifest`` adds to its manifest."""
        files = self.home / "hello"
        files.mkdir(exist_ok=True)
        (files / "hello.py").write_text(PROGRAM)
        (self.home / "owner.pem").write_text(self.owner.certificate_pem)
        application = {
            "name": "hello",
            "files": "hello",
            "command": ["python3", "hello.py"],
            "memory": "32M",
            "percent": 50,
            "results": ["out.txt"],
        }
        content = {"name": "hello", "owner": "owner.pem", "system": {"memory": "256M"}, "applications": [application]}
        (self.home / "manifest.yaml").write_text(yaml.safe_dump({**content, **manifest}))
        out = self.home / "hello.vambrace"
        build_bundle(self.home / "manifest.yaml", out, self.base)
        return out

    def create(self, bundle: Path, **options: object) -> Realm:
        return Realm.create(
            bundle, host=self.host, owner=self.owner, trust=self.trust, context=self.context, **options
        )


@pytest.fixture
def user(tmp_path: Path, server: Server, base: RuntimeBase) -> User:
    return User(tmp_path, server, base)
