"""A broker as it runs, on loopback, for a platform of the tests: its own process's server, TLS, database and log.

The Realm is the agent's own client; only what needs an ARM machine, the trusted application, is a stand-in
(``attest_factory.Platform``), and the broker's streams come by TCP and not through a monitor.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attest_factory import INSTANCE, MEASUREMENT, PERSONALIZATION, Change, Platform, published, unchanged
from client_harness import make_platform
from vambrace_agent.release import Broker as AgentBroker
from vambrace_agent.release import Refused

from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.policy import SCHEMA
from vambrace.attest.references import publish
from vambrace.broker import setup
from vambrace.broker.platforms import PlatformFiles
from vambrace.broker.server import running
from vambrace.broker.settings import Settings, load_settings
from vambrace.client.broker import BrokerClient
from vambrace.suite import NIST, Suite

__all__ = ["INSTANCE", "MEASUREMENT", "PERSONALIZATION", "AgentBroker", "World", "published"]

PASSWORD = b"correct horse battery staple"
SECRET = "patients/secret/password"
VOLUME = "patients/volume/records"


class World:
    """Vendor, platform, owner and a broker's folder; ``start`` and ``stop`` the broker as often as wanted."""

    def __init__(
        self,
        folder: Path,
        database: str = setup.DATABASE,
        names: Sequence[str] = ("localhost", "127.0.0.1"),
        suite: Suite = NIST,
    ) -> None:
        from attest_factory import COMPONENTS, IMPLEMENTATION

        self.folder = folder
        self.suite = suite
        self.platform: Platform = make_platform(suite)
        self.owner = OwnerIdentity.create(folder / "owner", suite=suite)
        self.stranger = OwnerIdentity.create(folder / "stranger", suite=suite)
        self.root, self.references = folder / "vendor-root.pem", folder / "reference-values.corim"
        self.root.write_bytes(self.platform.authority.certificate_pem)
        self.references.write_bytes(
            publish(COMPONENTS, self.platform.authority, implementation_id=IMPLEMENTATION)
        )
        self.home = folder / "broker"
        setup.create(
            self.home,
            names=names,
            platforms={"default": PlatformFiles(self.root, self.references)},
            repositories={"patients": self.owner.published.encode()},
            port=0,
            database=database,
        )
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def settings(self) -> Settings:
        return load_settings(self.home)

    def change_settings(self, text: str) -> None:
        """Put lines before what is there."""
        file = self.home / "broker.toml"
        file.write_text(text + "\n" + file.read_text())

    # The broker

    def start(self) -> World:
        started: threading.Event = threading.Event()
        failure: list[BaseException] = []

        async def serve() -> None:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            async with running(self.settings) as self.port:
                started.set()
                await self._end.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:
                failure.append(error)
                started.set()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        started.wait(30)
        if failure:
            self._thread.join()
            raise failure[0]
        return self

    def stop(self) -> None:
        assert self._loop is not None and self._end is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    @contextmanager
    def running(self) -> Iterator[World]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    # Its users

    @property
    def certificate(self) -> str:
        return (self.home / "certificate.pem").read_text()

    def policy(self, **changes: Any) -> dict[str, Any]:
        """For the Realm of the tests; ``changes`` are of the table ``realm``, or of another that is given whole."""
        realm = {"measurements": [MEASUREMENT.hex()], "owners": [PERSONALIZATION.hex()], "hash": self.suite.hash}
        others = {key: changes.pop(key) for key in ("schema", "platform") if key in changes}
        return {"schema": SCHEMA, "realm": {**realm, **changes}, **others}

    def client(self, owner: OwnerIdentity | None = None) -> BrokerClient:
        owner = owner or self.owner
        return BrokerClient(
            f"https://127.0.0.1:{self.port}", self.home / "certificate.pem", *owner.channel_paths
        )

    def store(self, **policy: Any) -> None:
        """The password and a volume, for the Realm of the tests."""
        with self.client() as client:
            client.put(SECRET, PASSWORD, self.policy(**policy))
            client.put(VOLUME, None, self.policy(**policy))

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def realm(
        self,
        platform_claims: Change = unchanged,
        realm_claims: Change = unchanged,
        *,
        instance: bytes = INSTANCE,
        platform: Platform | None = None,
        dial: Callable[[], socket.socket] | None = None,
    ) -> AgentBroker:
        """The agent of a Realm, whose token differs from a good one as is said."""

        def attest(challenge: bytes) -> bytes:
            def bound(claims: dict[int, Any]) -> None:
                claims[10] = challenge
                realm_claims(claims)

            return (platform or self.platform).token(platform_claims, bound, instance=instance)

        return AgentBroker(
            f"https://localhost:{self.port}", self.certificate, dial or self.dial, attest, instance
        )

    def log(self) -> list[dict[str, Any]]:
        """All of the audit log, oldest first; the broker may run."""
        import sqlite3

        with sqlite3.connect(f"file:{self.home / 'broker.db'}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT entry FROM audit ORDER BY sequence").fetchall()
        return [json.loads(row[0]) for row in rows]

    def last(self) -> tuple[str, str, str]:
        """Event, outcome and reason of the newest entry."""
        entry = self.log()[-1]
        return entry["event"], entry["outcome"], entry["reason"]


def refused(world: World, ask: Callable[[], object], status: int, reason: str, what: str = "release") -> None:
    """``ask`` is refused with ``status``; the log has why, and that nothing was released for it."""
    before = len(released(world))
    with pytest.raises(Refused) as refusal:
        ask()
    assert refusal.value.status == status
    event, outcome, said = world.last()
    assert (event, outcome) == (what, "refused") and reason in said
    assert len(released(world)) == before
    assert PASSWORD not in str(refusal.value).encode()


def released(world: World) -> list[dict[str, Any]]:
    return [entry for entry in world.log() if (entry["event"], entry["outcome"]) == ("release", "granted")]
