"""Two hundred random lives of domains, VMMs killed at random points among them: nothing of any of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
from harness import MIB, Daemon, alive, run
from harness_certificates import Certificates
from test_host_classes import SECURE_CHANGES, normal

from vambrace.attest.image import ImageStatement, sign_image
from vambrace.attest.owner import OwnerIdentity

LIVES = 200
SHARDS = 4
AT_ONCE = 6
MEMORY = 800 * MIB  # not for all that are there at once: some are refused


class Killer:
    """Takes the hub's part for every VMM, and kills some of them: as they load, or later."""

    def __init__(self, daemon: Daemon, dice: random.Random) -> None:
        self.pids: list[int] = []
        self.killed = 0
        self._daemon, self._dice = daemon, dice
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            stream, _ = await loop.sock_accept(self._daemon.hub)
            stream.setblocking(False)
            task = asyncio.create_task(self._watch(stream))
            self._tasks.add(task)

    async def _watch(self, stream: Any) -> None:
        loop = asyncio.get_running_loop()
        with stream:
            pid = json.loads(await loop.sock_recv(stream, 1 << 17))["pid"]
            self.pids.append(pid)
            if self._dice.random() < 0.6:
                await asyncio.sleep(self._dice.choice((0, 0.01, 0.1, 0.3)))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed += 1
            while await loop.sock_recv(stream, 1 << 17):
                pass


async def live(daemon: Daemon, dice: random.Random, images: list[str]) -> str:
    """One domain from its request to its end, whatever comes between; its final state."""
    handle = str(uuid.UUID(int=dice.getrandbits(128), version=4))
    body = {"name": f"n{handle[:8]}", "image": dice.choice(images), "nonce": os.urandom(32).hex()}
    # Refused where there is no room, which leaves nothing either; then once more.
    while (answer := await daemon.call("PUT", f"/v1/domains/{handle}", json=body)).status == 507:
        await asyncio.sleep(0.1)
    assert answer.status == 201, answer.body
    for _ in range(dice.randrange(6)):
        await asyncio.sleep(dice.choice((0, 0.05, 0.3)))
        view = (await daemon.get(f"/v1/domains/{handle}")).json
        if view["state"] == "awaiting-verdict":
            with contextlib.suppress(AssertionError, ValueError):
                await daemon.verdict(handle, dice.choice(("yes", "yes", "no")))
    if dice.random() < 0.1:
        # Two at a time end it.
        await asyncio.gather(*(daemon.call("DELETE", f"/v1/domains/{handle}") for _ in range(2)))
    view = (await daemon.call("DELETE", f"/v1/domains/{handle}")).json
    assert view["final"]
    return str(view["state"])


@pytest.mark.parametrize("seed", range(SHARDS))
def test_the_accounting_comes_back_to_zero(tmp_path: Path, certificates: Certificates, seed: int) -> None:
    keeper = OwnerIdentity.create(tmp_path / "platform-owner")
    dice = random.Random(seed)

    async def test(daemon: Daemon) -> None:
        await daemon.provision(keeper)
        said = ImageStatement.of(
            "secure", "sha-256", daemon.measurement(**SECURE_CHANGES), daemon.config(**SECURE_CHANGES).encode()
        )
        images = [
            await daemon.upload(),
            await daemon.upload(signature=sign_image(keeper.key, said), **SECURE_CHANGES),
            await daemon.upload(**normal()),
        ]
        before = (await daemon.get("/v1/partition")).json
        killer = Killer(daemon, dice)
        serving = asyncio.create_task(killer.serve())
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> str:
            async with gate:
                return await live(daemon, dice, images)

        ends = await asyncio.gather(*(one() for _ in range(LIVES // SHARDS)))
        serving.cancel()
        # Each of these came about, or the test would show less than it says.
        assert {"destroyed", "failed"} <= set(ends) and killer.killed > 3, (ends, killer.killed)
        assert (await daemon.get("/v1/partition")).json == before
        assert before["domains"] == [] and before["memory"]["free"] == before["memory"]["total"]
        host = (await daemon.get("/v1/host")).json
        assert (host["domains"], host["memory"]["used"]) == (0, 0)
        assert list((daemon.settings.state / "volumes").iterdir()) == []
        assert not [pid for pid in killer.pids if alive(pid)]
        assert all(view["final"] for view in (await daemon.get("/v1/domains")).json["domains"])

    run(tmp_path, certificates, lambda daemon: soon_enough(test(daemon)), guest_memory=MEMORY)


async def soon_enough(what: Any) -> None:
    async with asyncio.timeout(300):
        await what
