"""The HTTP API: TLS, images, endorsement, arguments, channel, description."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import re
import socket
import ssl
import struct
import termios
import time
import uuid
from pathlib import Path

import aiohttp
import pytest
from harness import SPECIFICATION, Daemon, run, soon
from harness_certificates import OTHER_KEY, Certificates
from openapi_spec_validator import validate

from vambrace.attest.cbor import Tag, decode, encode
from vambrace.errors import TrustZoneError
from vambrace.host import channel
from vambrace.host.evidence import endorses, parse_chain, with_endorsement
from vambrace.serving.doors import Bounds

MESSAGE = 64 << 10


def test_description_is_valid_and_complete(tmp_path: Path, certificates: Certificates) -> None:
    validate(SPECIFICATION)

    async def test(daemon: Daemon) -> None:
        assert (await daemon.get("/v1/openapi.json")).json == SPECIFICATION

    run(tmp_path, certificates, test)
    source = Path("vambrace/host/api.py")
    root = Path(__file__).parents[3]
    routes = set(re.findall(r'web\.(get|put|post|delete|head)\("([^"]+)"', (root / source).read_text()))
    described = {
        (method, path) for path, item in SPECIFICATION["paths"].items() for method in item if method != "parameters"
    }
    assert routes == described


@pytest.mark.parametrize("client", [None, "intruder"])
def test_only_clients_with_a_certificate(tmp_path: Path, certificates: Certificates, client: str | None) -> None:
    async def test(daemon: Daemon) -> None:
        connector = aiohttp.TCPConnector(ssl=certificates.client_context(client))
        async with aiohttp.ClientSession(daemon.url, connector=connector) as session:
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await session.get("/v1/host")

    run(tmp_path, certificates, test)


def test_tls_1_3_only(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        context = certificates.client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with aiohttp.ClientSession(daemon.url, connector=aiohttp.TCPConnector(ssl=context)) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get("/v1/host")

    run(tmp_path, certificates, test)


def test_who_shows_no_certificate_keeps_nobody_out(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that never begin TLS are bounded, and end."""
    monkeypatch.setattr("vambrace.host.__main__.BOUNDS", Bounds(8, 4))
    monkeypatch.setattr("vambrace.serving.doors.HANDSHAKE_SECONDS", 1.0)

    async def gone(reader: asyncio.StreamReader) -> bool:
        with contextlib.suppress(ConnectionError):
            return await reader.read(1) == b""
        return True

    async def test(daemon: Daemon) -> None:
        port = int(daemon.url.rpartition(":")[2])
        made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        async with asyncio.timeout(30):
            assert all([await gone(reader) for reader, _ in made])
        assert (await daemon.get("/v1/host")).status == 200
        for _, writer in made:
            writer.close()

    run(tmp_path, certificates, test)


def test_endorsement(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        await daemon.stop()
        daemon.settings.endorsement.unlink()
        await daemon.start(endorse=False)
        image = await daemon.upload()
        handle = str(uuid.uuid4())
        body = {"name": "early", "image": image, "nonce": "00" * 32}
        answer = await daemon.call("PUT", f"/v1/domains/{handle}", json=body)
        assert answer.status == 503
        assert "endorsement" in answer.json["hint"]
        platform = (await daemon.get("/v1/platform")).json
        assert platform["endorsed"] is False
        key = bytes.fromhex(platform["platform_key"])
        path = "/v1/platform/endorsement"
        assert (await daemon.call("PUT", path, data=b"not PEM")).status == 422
        assert (await daemon.call("PUT", path, data=certificates.endorse(OTHER_KEY))).status == 403
        assert not daemon.settings.endorsement.exists()
        assert (await daemon.call("PUT", path + "?lock=2", data=certificates.endorse(key))).status == 400
        answer = await daemon.call("PUT", path + "?lock=1", data=certificates.endorse(key))
        assert answer.status == 503, "without TrustZone there is nothing to lock"
        assert not daemon.settings.endorsement.exists()
        assert (await daemon.call("PUT", path, data=certificates.endorse(key))).json["endorsed"]
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", json=body)).status == 201
        # A chain for another machine's key (a copied state disk) counts as none.
        await daemon.stop()
        daemon.settings.endorsement.write_bytes(certificates.endorse(OTHER_KEY))
        await daemon.start(endorse=False)
        assert (await daemon.get("/v1/host")).json["endorsed"] is False

    run(tmp_path, certificates, test)


# The generator point of P-256 as a COSE_Key: a key that is surely not the platform's.


def test_wrong_arguments(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle = str(uuid.uuid4())
        good = {"name": "a", "image": "0" * 64, "nonce": "0" * 64}
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", json=good)).status == 404, "no such image"
        for change in (
            {"name": ""},
            {"name": "../x"},
            {"name": "A"},
            {"name": "-"},
            {"name": "a" * 33},
            {"name": "a" * 64},
            {"name": 7},
            {"image": "0" * 63},
            {"image": None},
            {"nonce": "0" * 62},
            {"nonce": "G" * 64},
            {"more": 1},
        ):
            answer = await daemon.call("PUT", f"/v1/domains/{handle}", json={**good, **change})
            assert answer.status == 400, change
            assert answer.json["hint"]
        for body in (b"", b"[]", b"\xff", b"[" * 60000):
            assert (await daemon.call("PUT", f"/v1/domains/{handle}", data=body)).status == 400
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", data=bytes(1 << 20))).status == 413
        for path in ("/v1/domains/x", f"/v1/domains/{handle.upper()}", f"/v1/domains/urn:uuid:{handle}"):
            assert (await daemon.get(path)).status == 400
        assert (await daemon.get(f"/v1/domains/{handle}")).status == 404
        assert (await daemon.get("/v1/nothing")).status == 404
        assert (await daemon.call("POST", "/v1/host")).status == 405
        running = await daemon.create(await daemon.upload())
        for query in ("wait=61", "wait=-1", "wait=nan", "wait=x", "wait=1&unless=flying"):
            assert (await daemon.get(f"/v1/domains/{running}?{query}")).status == 400, query

    run(tmp_path, certificates, test)


def test_long_poll(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, _ = await daemon.awaiting()
        start = time.monotonic()
        view = (await daemon.get(f"/v1/domains/{handle}?wait=0.3&unless=awaiting-verdict")).json
        assert view["state"] == "awaiting-verdict"
        assert time.monotonic() - start >= 0.3
        start = time.monotonic()
        assert (await daemon.get(f"/v1/domains/{handle}?wait=60&unless=loading")).status == 200
        waiting = asyncio.create_task(daemon.get(f"/v1/domains/{handle}?wait=60"))
        await asyncio.sleep(0.1)
        await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert (await soon(waiting)).json["step"] == 406
        assert (await daemon.get(f"/v1/domains/{handle}?wait=60")).json["state"] == "destroyed"
        assert time.monotonic() - start < 60, "nobody has waited to the end"

    run(tmp_path, certificates, test)


def test_channel(tmp_path: Path, certificates: Certificates) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        path = f"/v1/domains/{handle}/channel"
        early = await daemon.get(path)
        assert (early.status, early.json["hint"]) == (409, "wait until it is running")
        await daemon.verdict(handle, "yes")
        await vmm.request("start")
        await daemon.state(handle, "running")
        assert (await daemon.get(path)).status == 426
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await daemon.session.ws_connect(path)
        assert refused.value.status == 503, "nobody listens yet"
        server = await asyncio.start_unix_server(echo, daemon.agent_path)
        async with daemon.session.ws_connect(path) as first, daemon.session.ws_connect(path) as second:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await daemon.session.ws_connect(path)
            assert refused.value.status == 429
            blob = os.urandom(3 << 20)
            sending = asyncio.create_task(send(first, blob))
            received = io.BytesIO()
            while received.tell() < len(blob):
                received.write(await soon(first.receive_bytes()))
            await sending
            assert received.getvalue() == blob
            await second.send_str("text is no channel")
            assert (await soon(second.receive())).type is aiohttp.WSMsgType.CLOSE
            await daemon.call("DELETE", f"/v1/domains/{handle}")
            assert (await soon(first.receive())).type is aiohttp.WSMsgType.CLOSE
        late = await daemon.get(path)
        assert (late.status, late.json["hint"]) == (409, "'vambrace ps --all' shows how it ended")
        server.close()

    run(tmp_path, certificates, test, channels=2)


def test_a_guest_that_takes_more_than_it_reads(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host's kernel holds for it is bounded by the host, and nothing of it is lost."""
    monkeypatch.setattr(channel, "UNSENT", 32 << 10)

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        await daemon.verdict(handle, "yes")
        await vmm.request("start")
        await daemon.state(handle, "running")
        loop, blob = asyncio.get_running_loop(), os.urandom(2 << 20)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(daemon.agent_path))
            listener.listen()
            listener.setblocking(False)
            async with daemon.session.ws_connect(f"/v1/domains/{handle}/channel") as owner:
                guest, _ = await loop.sock_accept(listener)
                sending = asyncio.create_task(send(owner, blob))
                await asyncio.sleep(0.5)
                (waiting,) = struct.unpack("i", fcntl.ioctl(guest, termios.FIONREAD, bytes(4)))
                assert 0 < waiting <= channel.UNSENT + MESSAGE
                received = bytearray()
                while len(received) < len(blob):
                    received += await soon(loop.sock_recv(guest, 1 << 20))
                await sending
                assert received == blob
                guest.close()

    run(tmp_path, certificates, test)


async def send(owner: aiohttp.ClientWebSocketResponse, blob: bytes) -> None:
    for start in range(0, len(blob), MESSAGE):
        await owner.send_bytes(blob[start : start + MESSAGE])


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", "null", "", "http://HOST", "https://HOST.example", "HOST"]
)
def test_no_page_of_another_site_speaks_through_a_browser(
    tmp_path: Path, certificates: Certificates, origin: str
) -> None:
    """Whatever it asks for is refused before anything is done, a WebSocket or not."""

    async def test(daemon: Daemon) -> None:
        foreign = {"Origin": origin.replace("HOST", daemon.url.removeprefix("https://"))}
        handle, vmm = await daemon.awaiting()
        await daemon.verdict(handle, "yes")
        await vmm.request("start")
        await daemon.state(handle, "running")
        server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), daemon.agent_path)
        path = f"/v1/domains/{handle}/channel"
        for place in (path, f"/v1/domains/{handle}/console"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await daemon.session.ws_connect(place, headers=foreign)
            assert refused.value.status == 403
        answer = await daemon.call("DELETE", f"/v1/domains/{handle}", headers=foreign)
        assert answer.status == 403 and "web page of another site" in answer.json["detail"]
        await daemon.state(handle, "running")
        assert daemon.dialled == []
        async with daemon.session.ws_connect(path, headers={"Origin": daemon.url}):
            assert len(daemon.dialled) == 1
        server.close()

    run(tmp_path, certificates, test)


def test_endorsement_changes_no_signed_byte(certificates: Certificates) -> None:
    chain = parse_chain(certificates.endorse(OTHER_KEY))
    assert endorses(chain, OTHER_KEY)
    assert not endorses(chain[1:], OTHER_KEY)
    sign1 = Tag(18, [b"\xa1\x01\x26", {}, b"\xa0", bytes(64)])
    evidence = encode(Tag(907, {44234: [263, encode(sign1)], 44241: [263, b"realm, opaque"]}))
    result = decode(with_endorsement(evidence, chain), limit=1 << 16)
    platform = decode(result.value[44234][1], limit=1 << 16)
    assert platform.value == [b"\xa1\x01\x26", {33: chain}, b"\xa0", bytes(64)]
    assert result.value[44241] == [263, b"realm, opaque"]
    empty = ({}, {44234: b"", 44241: b""}, {44234: [263, b""], 44241: [263, b""]}, {44234: [0, b""], 44241: [263, b""]})
    for broken in (b"", b"\xff", encode(7), *(encode(Tag(907, collection)) for collection in empty)):
        with pytest.raises(TrustZoneError):
            with_endorsement(broken, chain)


def test_problems_have_the_described_form(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        answer = await daemon.get(f"/v1/domains/{uuid.uuid4()}")
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert set(json.loads(answer.body)) == {"type", "title", "status", "detail", "hint"}

    run(tmp_path, certificates, test)
