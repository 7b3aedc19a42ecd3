"""A broker outside of the server, for its Realms."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from user import User

from vambrace.broker import setup
from vambrace.broker.platforms import PlatformFiles
from vambrace.broker.server import running
from vambrace.broker.settings import load_settings
from vambrace.client.broker import BrokerClient
from vambrace.emulator.qemu import BROKER


class Outside:
    """A broker on this machine, behind a line that can be held: what the server sends then does not arrive. ``folder``
    is the broker's, made if it is not there."""

    def __init__(self, folder: Path, user: User, port: int) -> None:
        self.home, self.port = folder, port
        if not folder.exists():
            access = user.server.access()
            setup.create(
                folder,
                names=[BROKER[0], "localhost"],
                platforms={"default": PlatformFiles(access.vendor_root, access.references)},
                repositories={"tests": user.owner.certificate_pem.encode()},
                port=0,
            )
        self.held = False
        self.cut = 0  # connections that ended while they were held
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Outside:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def client(self, user: User) -> BrokerClient:
        owner = user.owner
        url = f"https://localhost:{self.broker}"
        return BrokerClient(url, self.home / "certificate.pem", owner.certificate_path, owner.key_path)

    def log(self, event: str) -> list[dict[str, Any]]:
        with sqlite3.connect(f"file:{self.home / 'broker.db'}?mode=ro", uri=True) as database:
            entries = [json.loads(row[0]) for row in database.execute("SELECT entry FROM audit ORDER BY sequence")]
        return [entry for entry in entries if entry["event"] == event]

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        line = await asyncio.start_server(self._line, "127.0.0.1", self.port)
        async with running(load_settings(self.home)) as self.broker, line:
            self._started.set()
            await self._end.wait()

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self.broker)

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, held: bool) -> None:
            while data := await source.read(65536):
                if held and self.held:
                    # What comes now is lost with the connection, as it would be in a network.
                    while await source.read(65536):
                        pass
                    self.cut += 1
                    break
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(carry(reader, outer, True), carry(inner, writer, False), return_exceptions=True)
