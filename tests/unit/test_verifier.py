"""The verifier as a service, run for real on loopback; every answer is checked against openapi.yaml."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attest_factory import COMPONENTS, IMPLEMENTATION, INSTANCE, MEASUREMENT, NONCE, PERSONALIZATION, Platform, new_key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ReasonFlags
from described import Answer, check

from vambrace.attest import ear, references
from vambrace.attest.challenge import channel_challenge, launch_challenge
from vambrace.attest.endorsement import VendorAuthority
from vambrace.emulator.provision import Credentials
from vambrace.errors import CertificateRevoked, ConfigError
from vambrace.serving.doors import client_of
from vambrace.serving.openapi import specification
from vambrace.serving.rates import CLIENTS, Rates
from vambrace.verifier import api
from vambrace.verifier.questions import MAX_REQUEST
from vambrace.verifier.service import Service
from vambrace.verifier.settings import Settings, load_settings

SPECIFICATION = json.loads(specification(api.__file__))
POLICY = f"""schema = "vambrace.policy/1"
id = "tag:example.org,2026:patients"
[realm]
measurements = ["{MEASUREMENT.hex()}"]
"""


@dataclass
class World:
    """A platform that exists now, and the files of a service that trusts its vendor."""

    platform: Platform
    folder: Path
    settings: Settings


@pytest.fixture
def world(tmp_path: Path) -> World:
    now = datetime.now(UTC)
    platform = Platform(authority=VendorAuthority.create(now=now))
    platform.chain = [platform.authority.certify(platform.pak_cose, now=now).public_bytes(Encoding.DER)]
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "patients.toml").write_text(POLICY)
    (tmp_path / "vendor-root.pem").write_bytes(platform.authority.certificate_pem)
    values = references.publish(COMPONENTS, platform.authority, implementation_id=IMPLEMENTATION)
    (tmp_path / "reference-values.corim").write_bytes(values)
    (tmp_path / "vendor.crl").write_bytes(platform.authority.revocation_list())
    (tmp_path / "verifier.toml").write_text(
        'signing_key = "keys/ear.pem"\npolicies = "policies"\nroots = ["vendor-root.pem"]\nport = 0\n'
        'corims = ["reference-values.corim"]\nrevocation_lists = ["vendor.crl"]\n'
    )
    return World(platform, tmp_path, load_settings(tmp_path / "verifier.toml"))


class Client:
    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """A request whose answer must be one that openapi.yaml describes."""
        async with self._session.request(method, self._base + path, **options) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        check(SPECIFICATION, method, path, answer)
        return answer

    async def appraise(self, question: Any, **options: Any) -> Answer:
        return await self.call("POST", "/v1/appraisals", json=question, **options)


@contextlib.asynccontextmanager
async def running(settings: Settings, **client: Any) -> AsyncIterator[Client]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(api.serve(settings, port.set_result))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if not port.done():
        task.result()
    scheme = "https" if settings.certificate else "http"
    try:
        connector = aiohttp.TCPConnector(force_close=True, **client)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Client(session, f"{scheme}://127.0.0.1:{port.result()}")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await task


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(timed())


def question(world: World, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "evidence": base64.b64encode(world.platform.token()).decode(),
        "policy": "patients",
        "binding": {"kind": "launch", "nonce": NONCE.hex()},
    }
    return {key: value for key, value in {**known, **changes}.items() if value is not None}


async def claims_of(client: Client, answer: Answer, nonce: bytes | None = None) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"].replace(" ", "") == ear.JWT_TYPE.replace(" ", "")
    jwk = (await client.call("GET", "/.well-known/jwks.json")).json["keys"][0]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "==")) for name in "xy")
    key = EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
    return ear.verify_jwt(answer.body, key, nonce=nonce)


def verdict(claims: dict[str, Any]) -> str:
    (one,) = {module["ear_verifier_claims"]["verdict"] for module in claims["submods"].values()}
    return str(one)


def errors(claims: dict[str, Any]) -> set[str]:
    modules = claims["submods"].values()
    return {f["error"] for m in modules for f in m["ear_verifier_claims"]["findings"] if "error" in f}


def test_evidence_is_appraised(world: World) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            nonce = base64.b64encode(bytes(16)).decode()
            claims = await claims_of(client, await client.appraise(question(world, nonce=nonce)), bytes(16))
            assert verdict(claims) == "accepted"
            assert claims["submods"]["realm"]["ear_appraisal_policy_ids"] == ["tag:example.org,2026:patients"]
            told = base64.urlsafe_b64decode(claims["submods"]["realm"]["eat_nonce"])
            assert told == launch_challenge(NONCE, INSTANCE)
            described = (await client.call("GET", "/v1/verifier")).json
            assert [policy["name"] for policy in described["policies"]] == ["patients"]
            assert (await client.call("GET", "/v1/openapi.json")).json == SPECIFICATION

    run(test)


def test_the_three_bindings(world: World) -> None:
    spki = new_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    token = world.platform.token(realm=lambda claims: claims.update({10: channel_challenge(NONCE, spki, INSTANCE)}))
    channel = {
        "evidence": base64.b64encode(token).decode(),
        "binding": {
            "kind": "channel",
            "nonce": NONCE.hex(),
            "instance": INSTANCE.hex(),
            "key": base64.b64encode(spki).decode(),
        },
    }
    raw = {"binding": {"kind": "challenge", "challenge": launch_challenge(NONCE, INSTANCE).hex()}}
    stale = {"binding": {"kind": "launch", "nonce": "00" * 32}}
    relayed = {**channel, "binding": {**channel["binding"], "instance": "00" * 16}}

    async def test() -> None:
        async with running(world.settings) as client:
            for changes in (channel, raw):
                claims = await claims_of(client, await client.appraise(question(world, **changes)))
                assert verdict(claims) == "accepted"
            for changes, error in ((stale, "ChallengeMismatch"), (relayed, "AnotherRealm")):
                claims = await claims_of(client, await client.appraise(question(world, **changes)))
                assert verdict(claims) == "refused" and error in errors(claims)

    run(test)


def test_an_expectation_only_demands_more(world: World) -> None:
    (world.folder / "policies" / "nothing.toml").write_text('schema = "vambrace.policy/1"\n')

    async def test() -> None:
        async with running(world.settings) as client:
            right = {"measurement": MEASUREMENT.hex(), "owner": PERSONALIZATION.hex()}
            claims = await claims_of(client, await client.appraise(question(world, expect=right)))
            assert verdict(claims) == "accepted"
            for wrong, error in (
                ({"measurement": "00" * 32}, "MeasurementMismatch"),
                ({"owner": "00" * 64}, "OwnerMismatch"),
            ):
                claims = await claims_of(client, await client.appraise(question(world, expect=wrong)))
                assert verdict(claims) == "refused" and errors(claims) == {error}
            # Who asks cannot make a policy accept what it does not name.
            claims = await claims_of(client, await client.appraise(question(world, policy="nothing", expect=right)))
            assert verdict(claims) == "refused" and errors(claims) == {"MeasurementMismatch"}

    run(test)


def test_as_cwt(world: World) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            answer = await client.appraise(question(world), headers={"Accept": "application/eat-cwt"})
            assert answer.headers["Content-Type"].startswith("application/eat-cwt")
            assert b"tag:ietf.org,2026:rats/ear#04" in answer.body

    run(test)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"evidence": None}, 400),
        ({"evidence": 7}, 400),
        ({"evidence": "%%"}, 400),
        ({"evidence": ""}, 400),
        ({"evidence": base64.b64encode(b"rubbish").decode()}, 422),
        ({"policy": "unknown"}, 404),
        ({"policy": "../patients"}, 400),
        ({"policy": None}, 400),
        ({"binding": None}, 400),
        ({"binding": {"kind": "x"}}, 400),
        ({"binding": {"kind": "launch", "nonce": "00"}}, 400),
        ({"binding": {"kind": "launch", "nonce": NONCE.hex().upper()}}, 400),
        ({"binding": {"kind": "launch", "nonce": NONCE.hex(), "more": 1}}, 400),
        ({"binding": {"kind": "challenge", "challenge": 7}}, 400),
        ({"expect": {"measurement": "00"}}, 400),
        ({"expect": {"surprise": 1}}, 400),
        ({"expect": []}, 400),
        ({"nonce": base64.b64encode(bytes(7)).decode()}, 400),
        ({"surprise": 1}, 400),
    ],
)
def test_what_is_no_question(world: World, changes: dict[str, Any], status: int) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            answer = await client.appraise(question(world, **changes))
            assert answer.status == status, answer.body
            assert answer.headers["Content-Type"].startswith("application/problem+json")

    run(test)


def test_what_is_no_request(world: World) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            path, kind = "/v1/appraisals", {"Content-Type": "application/json"}
            cases: list[tuple[bytes, dict[str, str], int]] = [
                (b"", kind, 400),
                (b"[]", kind, 400),
                (b"\xff", kind, 400),
                (b"[" * 50000, kind, 400),
                (b"{}", {"Content-Type": "text/plain"}, 400),
                (b" " * (MAX_REQUEST + 1), kind, 413),
            ]
            for body, headers, status in cases:
                answer = await client.call("POST", path, data=body, headers=headers)
                assert answer.status == status, answer.body
            assert (await client.call("GET", path)).status == 405
            assert (await client.call("GET", "/v1/other")).status == 404

    run(test)


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
