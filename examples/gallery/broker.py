"""A key broker of the user's, on this machine, where Realms of the emulated server reach it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from examples.user import User
from vambrace.attest.policy import Policy
from vambrace.broker import setup
from vambrace.broker.platforms import PlatformFiles
from vambrace.broker.server import running
from vambrace.broker.settings import Settings
from vambrace.client.broker import BrokerClient
from vambrace.emulator.qemu import BROKER
from vambrace.emulator.server import Server
from vambrace.errors import BrokerError
from vambrace.image.bundle import Bundle

REPOSITORY: Final = "gallery"
_START_SECONDS: Final = 60.0


class Broker:
    """A new one in ``folder``, whose secrets are ``user``'s; it serves until the block is left, in a thread.

    Raises ``ConfigError`` when it is made, ``BrokerError`` when the block is entered.
    """

    def __init__(self, folder: Path, server: Server, user: User) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        access = server.access()
        self._user = user
        self._settings: Settings = setup.create(
            folder,
            names=[BROKER[0], "localhost"],
            platforms={"default": PlatformFiles(access.vendor_root, access.references)},
            repositories={REPOSITORY: user.owner.published.encode()},
            port=server.running_broker(),
        )
        self.certificate = folder / setup.CERTIFICATE
        self._begun = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gallery-broker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._begun.wait(_START_SECONDS):
            raise BrokerError("the broker does not start")
        if self._failure:
            raise self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def put(self, resource: str, value: bytes, bundle: Path) -> None:
        """Store a secret that Realms of this image get, and nobody else. Raises as ``BrokerClient``."""
        image = Bundle.open(bundle)
        policy = Policy(
            measurements=frozenset({image.measurement()}), owners=frozenset({image.config.personalization()})
        )
        url = f"https://localhost:{self._settings.port}"
        with BrokerClient(url, self.certificate, *self._user.owner.channel_paths) as client:
            client.put(resource, value, policy.table())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with running(self._settings):
                self._begun.set()
                await self._end.wait()
        except Exception as error:
            self._failure = error
        finally:
            self._begun.set()
