"""A key broker of the user's, on this machine, where Realms of the emulated server reach it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.policy import Policy
from vambrace.broker import setup
from vambrace.broker.platforms import PlatformFiles
from vambrace.broker.server import running
from vambrace.broker.settings import load_settings
from vambrace.client.broker import BrokerClient
from vambrace.emulator.qemu import BROKER
from vambrace.errors import BrokerError
from vambrace.image.bundle import Bundle

REPOSITORY: Final = "gallery"
_START_SECONDS: Final = 60.0


class Broker:
    """A new one in ``folder`` for Realms on ``platform``, with secrets of ``owner``; it serves at ``port`` until the
    block is left, in a thread.

    Raises ``ConfigError`` when it is made, ``BrokerError`` when the block is entered.
    """

    def __init__(self, folder: Path, owner: OwnerIdentity, platform: PlatformFiles, port: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._owner = owner
        setup.create(
            folder,
            names=[BROKER[0], "localhost"],
            platforms={"default": platform},
            repositories={REPOSITORY: owner.published.encode()},
            port=port,
        )
        self._settings = load_settings(folder)
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

    def client(self) -> BrokerClient:
        """Its owner's, while it serves."""
        return BrokerClient(f"https://localhost:{self.port}", self.certificate, *self._owner.channel_paths)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with running(self._settings) as self.port:
                self._begun.set()
                await self._end.wait()
        except Exception as error:
            self._failure = error
        finally:
            self._begun.set()


def image_policy(bundle: Path) -> dict[str, Any]:
    """That of a secret for Realms of this image and owner, and nobody else. Raises ``ImageError``."""
    image = Bundle.open(bundle)
    owner = image.config.personalization()
    return Policy(measurements=frozenset({image.measurement()}), owners=frozenset({owner})).table()
