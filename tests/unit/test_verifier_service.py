"""The verifier as a service: its settings, TLS, rates and connections, and files that change while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.x509 import ReasonFlags
from verifier_world import POLICY, Client, World, claims_of, errors, make_world, question, run, running, verdict

from vambrace.emulator.provision import Credentials
from vambrace.errors import CertificateRevoked, ConfigError
from vambrace.serving.doors import client_of
from vambrace.serving.rates import CLIENTS, Rates
from vambrace.verifier.service import Service
from vambrace.verifier.settings import Settings, load_settings


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_rates(world: World) -> None:
    """After the burst a client waits as long as it is told; asking for other things costs nothing."""
    settings = load(world, "rate = 1\nburst = 3\n")

    async def test() -> None:
        async with running(settings) as client:
            statuses = [(await client.appraise(question(world))).status for _ in range(3)]
            assert statuses == [200] * 3
            answer = await client.appraise(question(world))
            assert answer.status == 429 and answer.headers["Retry-After"] == "1"
            assert (await client.call("GET", "/v1/verifier")).status == 200

    run(test)


def test_connections_of_one_client(world: World) -> None:
    settings = load(world, "connections_each = 2\n")

    async def test() -> None:
        async with running(settings) as client:
            host, port = client._base.removeprefix("http://").split(":")
            held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
            await until(lambda: refused(host, int(port)))
            held[0][1].close()
            await held[0][1].wait_closed()
            await until(lambda: served(client))
            held[1][1].close()

    run(test)


def test_who_never_ends_a_handshake_counts_too(world: World) -> None:
    Credentials(world.folder / "api").create()
    settings = load(
        world, 'connections_each = 2\ncertificate = "api/server/server.pem"\nkey = "api/server/server.key"\n'
    )

    async def test() -> None:
        async with running(settings) as client:
            host, port = client._base.removeprefix("https://").split(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(6)]
            gone = 0
            for reader, _ in silent:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(0.5):
                        gone += await reader.read(1) == b""
            assert gone == 4
            for _, writer in silent:
                writer.close()

    run(test)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


async def refused(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET /v1/verifier HTTP/1.1\r\nHost: x\r\n\r\n")
        return await reader.read(1) == b""
    return True


async def served(client: Client) -> bool:
    try:
        return (await client.call("GET", "/v1/verifier")).status == 200
    except aiohttp.ClientError:
        return False


def load(world: World, more: str) -> Settings:
    path = world.folder / "verifier.toml"
    path.write_text(path.read_text() + more)
    return load_settings(path)


def test_tls_and_certificates_of_clients(world: World) -> None:
    credentials = Credentials(world.folder / "api")
    credentials.create()
    settings = load(
        world, 'certificate = "api/server/server.pem"\nkey = "api/server/server.key"\nclient_ca = "api/ca.pem"\n'
    )
    with_ours = ssl.create_default_context(cafile=str(credentials.ca))
    with_ours.load_cert_chain(credentials.client_certificate, credentials.client_key)

    async def test() -> None:
        async with running(settings, ssl=with_ours) as client:
            assert (await client.appraise(question(world))).status == 200
        async with running(settings, ssl=ssl.create_default_context(cafile=str(credentials.ca))) as client:
            with pytest.raises(aiohttp.ClientError):
                await client.call("GET", "/v1/verifier")

    run(test)


def test_files_that_change(world: World) -> None:
    """A revoked platform is refused after SIGHUP; with a list that cannot be read nothing is appraised any more."""
    leaf = x509.load_der_x509_certificate((world.platform.chain or [])[0])
    revoked = world.platform.authority.revocation_list(revoke={leaf.serial_number: ReasonFlags.key_compromise})

    async def test() -> None:
        async with running(world.settings) as client:
            assert verdict(await claims_of(client, await client.appraise(question(world)))) == "accepted"
            (world.folder / "vendor.crl").write_bytes(revoked)
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0)
            await until(lambda: said(client, world, "CertificateRevoked"))
            (world.folder / "vendor.crl").write_bytes(b"rubbish")
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: answered(client, world, 503))
            (world.folder / "vendor.crl").write_bytes(world.platform.authority.revocation_list())
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: answered(client, world, 200))

    run(test)


async def said(client: Client, world: World, error: str) -> bool:
    return error in errors(await claims_of(client, await client.appraise(question(world))))


async def answered(client: Client, world: World, status: int) -> bool:
    return (await client.appraise(question(world))).status == status


def test_reference_values_that_expire(world: World) -> None:
    service = Service(world.settings)
    service.load()
    assert service.describe()["policies"]
    later = datetime.now(UTC) + timedelta(days=4000)
    with pytest.raises(Exception, match="expired|validity"):
        service.load(later)
    with pytest.raises(Exception, match="not ready"):
        service.describe()


def test_the_signing_key_is_made_once_and_kept(world: World) -> None:
    first = Service(world.settings).keys()
    path = world.folder / "keys" / "ear.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert Service(world.settings).keys() == first
    path.write_text("rubbish")
    with pytest.raises(ConfigError, match="private key"):
        Service(world.settings)


def test_a_vendor_that_revoked_its_signer(world: World) -> None:
    import cbor2

    header = cbor2.loads(cbor2.loads((world.folder / "reference-values.corim").read_bytes()).value[0])
    serial = x509.load_der_x509_certificate(header[33]).serial_number
    lists = world.platform.authority.revocation_list(revoke={serial: ReasonFlags.key_compromise})
    (world.folder / "vendor.crl").write_bytes(lists)
    with pytest.raises(CertificateRevoked):
        Service(world.settings).load()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('listen = "0.0.0.0"\n', "without TLS"),
        ('listen = "somewhere"\n', "not an address"),
        ('certificate = "x"\n', "belong together"),
        ('client_ca = "x"\n', "needs certificate"),
        ("surprise = 1\n", r"verifier\.toml: unknown key 'surprise'"),
        ("rate = 0\n", "rate must be 1 to 10000"),
        ('rate = "1"\n', "rate must be a whole number"),
        ("rate = true\n", "rate must be a whole number"),
        ("signers = [1]\n", r"signers\[0\] must be a path"),
        ("listen = [\n", "not TOML"),
    ],
)
def test_settings(world: World, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(world, more)


def test_settings_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "none.toml")
    (tmp_path / "few.toml").write_text('policies = "p"\n')
    with pytest.raises(ConfigError, match="signing_key is missing"):
        load_settings(tmp_path / "few.toml")


def test_policies_that_are_wrong(world: World) -> None:
    (world.folder / "policies" / "Bad Name.toml").write_text(POLICY)
    with pytest.raises(ConfigError, match="cannot name"):
        Service(world.settings).load()
    (world.folder / "policies" / "Bad Name.toml").unlink()
    (world.folder / "policies" / "bad.toml").write_text("schema = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        Service(world.settings).load()
    for path in (world.folder / "policies").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="no policies"):
        Service(world.settings).load()


def test_whose_rate_it_is() -> None:
    """An IPv6 client has a whole network of addresses to choose from."""
    assert client_of("192.0.2.1") == client_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_of("2001:db8::1") == client_of("2001:db8::2") != client_of("2001:db8:0:1::1")
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert client_of("rubbish") == "unknown"


def test_buckets() -> None:
    time = [0.0]
    rates = Rates(2, 2, CLIENTS, lambda: time[0])
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0.5]
    assert rates.take("b") == 0
    time[0] = 0.25
    assert rates.take("a") == 0.25
    time[0] = 0.5
    assert rates.take("a") == 0
    for client in range(2 * CLIENTS):
        rates.take(str(client))
    assert len(rates._buckets) == CLIENTS
