"""What a Realm of a whole daemon asks for on its applications' behalf: a stream to its broker, keys to seal with."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, run, soon
from harness_certificates import Certificates

from vambrace.host.outlets import OUTLET_MEMORY
from vambrace.release import Broker, Sealing


@pytest.fixture
def listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


def place(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def broker(certificates: Certificates, listener: socket.socket) -> Broker:
    return Broker(f"https://{place(listener)}", certificates.owner.certificate_pem)


def test_a_stream_to_the_broker(tmp_path: Path, certificates: Certificates, listener: socket.socket) -> None:
    async def test(daemon: Daemon) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as agents:
            agents.bind(str(daemon.agent_path))
            agents.listen(8)
            agents.setblocking(False)
            handle, vmm = await daemon.running(broker=broker(certificates, listener))
            assert (await vmm.ask("broker", stream=513))["ok"]
            inside, _ = await soon(loop.sock_accept(agents))
            outside, _ = await soon(loop.sock_accept(listener))
            with inside, outside:
                for stream in (inside, outside):
                    stream.setblocking(False)
                assert await soon(loop.sock_recv(inside, 5)) == b"c\0\0\x02\x01"
                await loop.sock_sendall(inside, b"question")
                assert await soon(loop.sock_recv(outside, 100)) == b"question"
                await loop.sock_sendall(outside, b"answer")
                assert await soon(loop.sock_recv(inside, 100)) == b"answer"
                # The Realm ends, and the broker sees it.
                ending = asyncio.create_task(daemon.call("DELETE", f"/v1/domains/{handle}"))
                assert await soon(loop.sock_recv(outside, 100)) == b""
                await ending

    run(tmp_path, certificates, test, brokers=(place(listener),))


def test_no_stream_elsewhere(tmp_path: Path, certificates: Certificates, listener: socket.socket) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm = await daemon.running(broker=broker(certificates, listener))
        answer = await vmm.ask("broker", stream=1)
        assert not answer["ok"] and "does not connect to the broker" in answer["error"] and "brokers" in answer["hint"]
        for stream in (-1, 1 << 32, "1", None):
            assert not (await vmm.ask("broker", stream=stream))["ok"]
        assert daemon.dialled == []
        with pytest.raises(BlockingIOError):
            listener.accept()

    run(tmp_path, certificates, test, brokers=("elsewhere:8444",))


def test_a_broker_takes_memory(tmp_path: Path, certificates: Certificates, listener: socket.socket) -> None:
    async def test(daemon: Daemon) -> None:
        plain, with_broker = [], {"broker": broker(certificates, listener)}
        for changes in ({}, with_broker):
            handle, _ = await daemon.running(**changes)
            plain.append((await daemon.get(f"/v1/domains/{handle}")).json["memory"])
            await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert plain[1] - plain[0] == OUTLET_MEMORY

    run(tmp_path, certificates, test)


def test_sealing_keys(tmp_path: Path, certificates: Certificates) -> None:
    """Of each kind another, and no version's that is newer than the image."""
    seals: list[tuple[dict[str, Any], list[int], int]] = [
        ({"sealing": Sealing()}, [0], 1),
        ({"sealing": Sealing("owner", 2)}, [0, 1, 2], 3),
        ({"sealing": Sealing("owner", 2), "name": "another"}, [0, 1, 2], 1 << 31),
    ]

    async def test(daemon: Daemon) -> None:
        keys: list[str] = []
        for changes, versions, newer in seals:
            handle, vmm = await daemon.running(**changes)
            found = [(await vmm.ask("seal", version=version))["key"] for version in versions]
            assert found == [(await vmm.ask("seal", version=version))["key"] for version in versions]
            keys += found
            answer = await vmm.ask("seal", version=newer)
            assert not answer["ok"] and "newer version" in answer["error"]
            for version in (-1, "0", None, 1 << 32):
                assert not (await vmm.ask("seal", version=version))["ok"]
            await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert len(set(keys)) == len(keys) == 7 and {len(key) for key in keys} == {64}
        _, vmm = await daemon.running()
        answer = await vmm.ask("seal", version=0)
        assert not answer["ok"] and "seals nothing" in answer["error"]

    run(tmp_path, certificates, test)
