"""Messages between two Realms of a whole daemon: asked for over the agent's port, counted, cut when a Realm ends."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest
from harness import PATIENCE, Daemon, Vmm, alive, run, soon
from harness_certificates import Certificates

from vambrace.config import Endpoint
from vambrace.host import messages
from vambrace.host.messages import ENDPOINT_MEMORY
from vambrace.host.vsock import MESSAGE_PORT


class Agents:
    """Both agents' side of the daemon's streams."""

    def __init__(self, daemon: Daemon) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(daemon.agent_path))
        self.listener.listen(8)
        self.listener.setblocking(False)

    async def stream(self, first: bytes) -> socket.socket:
        """The next stream, which must begin with ``first``."""
        stream, _ = await soon(asyncio.get_running_loop().sock_accept(self.listener))
        stream.setblocking(False)
        assert await self.read(stream, 5) == first
        return stream

    async def read(self, stream: socket.socket, length: int) -> bytes:
        return await soon(asyncio.get_running_loop().sock_recv(stream, length))


def endpoint(certificates: Certificates, role: str, realm: str) -> tuple[Endpoint, ...]:
    return (Endpoint("records", role, 8000, certificates.owner.personalization().hex(), realm),)


async def two(daemon: Daemon) -> tuple[tuple[str, Vmm], tuple[str, Vmm]]:
    """A Realm that offers and one that connects. The operator calls them what they are not."""
    made = []
    for role, own, peer in (("offer", "registry", "ward"), ("connect", "ward", "registry")):
        wanted = endpoint(daemon.certificates, role, peer)
        handle = await daemon.create(await daemon.upload(name=own, endpoints=wanted), f"op-{peer}")
        vmm = await daemon.vmm()
        await vmm.request("load")
        await daemon.state(handle, "awaiting-verdict")
        assert (await daemon.verdict(handle, "yes")).status == 200
        await vmm.request("start")
        await daemon.state(handle, "running")
        assert (await vmm.ask("report", state="ready"))["ok"]
        made.append((handle, vmm))
    return made[0], made[1]


def test_two_realms(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "REFRESH_SECONDS", 0.05)

    async def test(daemon: Daemon) -> None:
        loop = asyncio.get_running_loop()
        agents = Agents(daemon)
        (offering, offerer), (_, caller) = await two(daemon)
        assert (await caller.ask("connect", endpoint=0, stream=513))["ok"]
        near = await agents.stream(b"c\0\0\x02\x01")
        far = await agents.stream(b"o\0\0\0\0")
        assert [port for _, port in daemon.dialled] == [MESSAGE_PORT] * 2
        assert len({cid for cid, _ in daemon.dialled}) == 2
        await loop.sock_sendall(near, b"question")
        assert await agents.read(far, 100) == b"question"
        sending = asyncio.create_task(loop.sock_sendall(far, bytes(2 << 20)))
        left = 2 << 20
        while left:
            left -= len(await agents.read(near, 1 << 20))
        await sending

        row = {"endpoint": "records", "refused": 0, "open": 1, "connections": 1}
        none = row | {"peer": None, "open": 0, "connections": 0, "sent": 0, "received": 0}
        assert (await caller.ask("messages"))["messages"] == [
            none | {"role": "connect"},
            row | {"role": "connect", "peer": "registry", "sent": 8, "received": 2 << 20},
        ]
        assert (await offerer.ask("messages"))["messages"] == [
            none | {"role": "offer"},
            row | {"role": "offer", "peer": "ward", "sent": 2 << 20, "received": 8},
        ]
        labels = 'caller="op-registry",endpoint="records",offerer="op-ward"'
        await shown(daemon, rf"vambrace_message_connections_total{{{labels}}} 1\.0")
        text = await shown(daemon, rf'vambrace_message_bytes_total{{{labels},to="caller"}} [123]\.')
        assert re.search(rf'vambrace_message_bytes_total{{{labels},to="offerer"}} (0\.0|1\.048576e\+06)', text)

        # A Realm that ends takes its streams along; its peer goes on, and nobody agrees any more.
        assert (await daemon.call("DELETE", f"/v1/domains/{offering}")).status == 200
        assert await agents.read(near, 1) == b"" == await agents.read(far, 1)
        reply = await caller.ask("connect", endpoint=0, stream=514)
        assert not reply["ok"] and reply["error"] == "no running Realm agrees to the endpoint records"
        await shown(daemon, r'vambrace_message_denied_total{realm="op-registry"} 1\.0')
        assert "vambrace_message_connections_total{" not in await shown(daemon, "vambrace_domains")

    run(tmp_path, certificates, test)


async def shown(daemon: Daemon, pattern: str) -> str:
    """The metrics, once they have something like ``pattern``."""
    async with asyncio.timeout(PATIENCE):
        while not re.search(pattern, text := (await daemon.get("/metrics")).body.decode()):
            await asyncio.sleep(0.02)
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"endpoint": 0},
        {"endpoint": 0, "stream": -1},
        {"endpoint": 0, "stream": 1 << 32},
        {"endpoint": True, "stream": 1},
        {"endpoint": "records", "stream": 1},
        {"endpoint": 1, "stream": 1},
        {"endpoint": 1 << 31, "stream": 1},
        {"endpoint": [0], "stream": {}},
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, certificates: Certificates, arguments: dict[str, object]) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running(endpoints=endpoint(certificates, "connect", "registry"))
        reply = await vmm.ask("connect", **arguments)
        assert not reply["ok"] and reply["error"]
        assert daemon.dialled == []
        await daemon.state(handle, "running")

    run(tmp_path, certificates, test)


def test_a_realm_without_endpoints(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        assert (await vmm.ask("messages"))["messages"] == []
        assert not (await vmm.ask("connect", endpoint=0, stream=0))["ok"]
        plain = (await daemon.get(f"/v1/domains/{handle}")).json["memory"]
        wanted = endpoint(certificates, "offer", "")
        other = await daemon.create(await daemon.upload(endpoints=wanted), "other")
        assert (await daemon.get(f"/v1/domains/{other}")).json["memory"] == plain + ENDPOINT_MEMORY
        await (await daemon.vmm()).request("load")

    run(tmp_path, certificates, test)


def test_a_flood_of_requests_is_its_own_realms_end(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        Agents(daemon)
        (_, offerer), (handle, caller) = await two(daemon)
        await caller.say(b'{"id": 1, "op": "connect", "endpoint": 0, "stream": 1}\n' * 400)
        view = await daemon.state(handle, "failed")
        assert "more requests than may wait" in view["reason"]
        assert alive(offerer.pid)
        assert (await offerer.ask("messages"))["ok"]

    run(tmp_path, certificates, test)
