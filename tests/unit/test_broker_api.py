"""The broker's API: owners and nobody else, everything bounded, every answer as it is described."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from broker_world import PASSWORD, SECRET, VOLUME, World
from cryptography.hazmat.primitives.serialization import Encoding
from described import Answer, check
from openapi_spec_validator import validate

from vambrace.attest.owner import OwnerIdentity
from vambrace.broker import server, setup
from vambrace.broker.policy import ReleasePolicy
from vambrace.broker.refusals import Refusals
from vambrace.broker.requests import bounded
from vambrace.broker.sessions import MAX_SESSIONS, Sessions
from vambrace.broker.settings import parse_settings
from vambrace.client.broker import BrokerClient
from vambrace.errors import BrokerError, ConfigError, NotFound, NotReleased, UsageError
from vambrace.serving.openapi import specification
from vambrace.serving.rates import CLIENTS, Rates

SPECIFICATION = json.loads(specification(server.__file__))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("broker")).running() as world:
        world.store()
        yield world


def ask(
    world: World, method: str, path: str, body: Any = None, *, owner: OwnerIdentity | None = None, cookie: str = ""
) -> tuple[int, Any]:
    """Status and body of an answer, which the description must have."""
    context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
    if owner:
        context.load_cert_chain(owner.certificate_path, owner.key_path)
    connection = http.client.HTTPSConnection("localhost", world.port, context=context, timeout=20)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"Cookie": cookie} if cookie else {})
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    check(SPECIFICATION, method, path, answer)
    return answer.status, answer.json if answer.body else None


def test_the_description_is_valid_and_complete(world: World) -> None:
    validate(SPECIFICATION)
    assert ask(world, "GET", "/v1/openapi.json") == (200, SPECIFICATION)
    folder = Path(server.__file__).parent
    routes = re.findall(r'web\.(get|put|post|delete)\((?:"([^"]+)"|secret)', "".join(
        (folder / name).read_text() for name in ("server.py", "admin.py")
    ))  # fmt: skip
    assert len(routes) == sum(method in item for item in SPECIFICATION["paths"].values() for method in
                              ("get", "put", "post", "delete"))  # fmt: skip


def test_an_owner(world: World) -> None:
    with world.client() as client:
        assert client.put("patients/secret/other", b"one", world.policy()) == 1
        assert client.put("patients/secret/other", b"two", None) == 2
        assert client.put("patients/secret/other", None, world.policy(cache="divided")) == 2
        assert client.describe("patients/secret/other")["policy"]["realm"]["cache"] == "divided"
        assert {each["resource"] for each in client.secrets("patients")} >= {"patients/secret/other", SECRET, VOLUME}
        entries, head = client.audit("patients")
        assert [(e["event"], e["generation"]) for e in entries if e["resource"] == "patients/secret/other"] == [
            ("put", 1), ("put", 2), ("policy", 2)]  # fmt: skip
        assert client.audit("patients", head["sequence"]) == ([], head)
        client.delete("patients/secret/other")
        with pytest.raises(NotFound):
            client.describe("patients/secret/other")
        # A name that comes back does not begin with numbers that were used.
        assert client.put("patients/secret/other", b"three", world.policy()) == 3
        client.delete("patients/secret/other")


def test_no_answer_has_a_value(world: World) -> None:
    for path in (f"/v1/secrets/{SECRET}", "/v1/secrets/patients", "/v1/audit/patients"):
        status, answer = ask(world, "GET", path, owner=world.owner)
        assert status == 200 and PASSWORD not in json.dumps(answer).encode() and "value" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/secrets/patients"), ("GET", f"/v1/secrets/{SECRET}"), ("PUT", f"/v1/secrets/{SECRET}"),
     ("DELETE", f"/v1/secrets/{SECRET}"), ("GET", "/v1/audit/patients")],
)  # fmt: skip
def test_nobody_else(world: World, method: str, path: str) -> None:
    assert ask(world, method, path, {} if method == "PUT" else None)[0] == 403
    elsewhere = path.replace("patients", "others")
    assert ask(world, method, elsewhere, {} if method == "PUT" else None, owner=world.owner)[0] == 403
    entry = next(entry for entry in reversed(world.log()) if entry["event"] == "owner")
    assert entry["outcome"] == "refused" and "others" in entry["reason"]
    assert entry["subject"]["administrator"] == hashlib.sha256(der(world.owner)).hexdigest()


def der(owner: OwnerIdentity) -> bytes:
    return owner.certificate.public_bytes(Encoding.DER)


def test_a_stranger_does_not_get_in(world: World) -> None:
    with world.client(world.stranger) as client, pytest.raises(BrokerError, match="cannot be reached") as found:
        client.secrets("patients")
    assert "of the owners that its settings name" in str(found.value.hint)


def test_why_there_is_no_connection_is_told_in_plain_words(world: World) -> None:
    certificate = world.home / "certificate.pem"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{nobody.getsockname()[1]}"
        with BrokerClient(url, certificate, *world.owner.channel_paths) as client, pytest.raises(BrokerError) as found:
            client.secrets("patients")
    assert found.value.message == f"the broker at {url} cannot be reached: Connection refused"
    assert "vambrace broker serve" in str(found.value.hint)
    url = f"https://localhost:{world.port}"
    with (
        BrokerClient(url, world.owner.certificate_path, *world.owner.channel_paths) as client,
        pytest.raises(BrokerError, match="cannot be reached: self-signed certificate$"),
    ):
        client.secrets("patients")


def test_a_volume_has_its_key_from_the_broker(world: World) -> None:
    with world.client() as client:
        for value in (bytes(32), bytes(31)):
            with pytest.raises(BrokerError, match="key"):
                client.put(VOLUME, value, None)
        with pytest.raises(BrokerError, match="32 bytes"):
            client.put("patients/volume/short", bytes(31), world.policy())


@pytest.mark.parametrize(
    "change",
    [{"measurements": []}, {"measurements": "any"}, {"measurements": ["00"]}, {"measurements": ["zz"]}, {"hash": "md5"},
     {"cache": "yes"}, {"debug": 1}, {"other": 1}, {"owners": "x"}, {"schema": "x"}, {"platform": {"insecure": 1}},
     {"measurements": [bytes([i]).hex() * 32 for i in range(65)]}],
)  # fmt: skip
def test_a_policy_that_admits_anything_or_nothing(world: World, change: dict[str, Any]) -> None:
    status, answer = ask(
        world, "PUT", "/v1/secrets/patients/secret/new",
        {"value": "AA==", "platform": "default", "policy": world.policy(**change)}, owner=world.owner,
    )  # fmt: skip
    assert status == 422, answer
    for platform in ("none", "../x", "", 1, None):
        body = {"value": "AA==", "platform": platform, "policy": world.policy()}
        assert ask(world, "PUT", "/v1/secrets/patients/secret/new", body, owner=world.owner)[0] == 422
    assert ask(world, "GET", "/v1/secrets/patients/secret/new", owner=world.owner)[0] == 404


def test_a_new_secret_needs_both(world: World) -> None:
    for body in ({"value": "AA=="}, {"policy": world.policy(), "platform": "default"}, {}):
        assert ask(world, "PUT", "/v1/secrets/patients/secret/new", body, owner=world.owner)[0] == 404


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"value": 1}', b'{"value": "!"}', b'{"value": ""}', b"[" * 50000, b"\xff"],
)
def test_bodies_that_are_none(world: World, body: bytes) -> None:
    assert ask(world, "PUT", f"/v1/secrets/{SECRET}", body, owner=world.owner)[0] == 400
    assert ask(world, "POST", "/kbs/v0/auth", body)[0] in (400, 401)


def test_a_body_that_is_too_large(world: World) -> None:
    assert ask(world, "POST", "/kbs/v0/auth", bytes(server.BODY_LIMIT + 1))[0] == 413
    value = {"value": "A" * 4 * ((64 << 10) // 3 + 4)}
    assert ask(world, "PUT", f"/v1/secrets/{SECRET}", value, owner=world.owner)[0] in (400, 413)


@pytest.mark.parametrize("name", ["a//b", "-/b/c", "a/b/" + 65 * "c", "a/b/c%2fd", "a/b/%2e%2e", "a/b/%00", "a/b/c%0a"])
def test_names_that_are_none(world: World, name: str) -> None:
    assert ask(world, "GET", f"/v1/secrets/{name}", owner=world.owner)[0] in (400, 403, 404)
    assert ask(world, "GET", f"/kbs/v0/resource/{name}", cookie="kbs-session-id=x")[0] in (400, 401, 404)


@pytest.mark.parametrize("cookie", ["", "kbs-session-id=", "other=x", "kbs-session-id=" + 4000 * "x"])
def test_cookies_of_no_session(world: World, cookie: str) -> None:
    assert ask(world, "GET", f"/kbs/v0/resource/{SECRET}", cookie=cookie)[0] == 401
    assert ask(world, "POST", "/kbs/v0/attest", {"tee-evidence": {}}, cookie=cookie)[0] == 401


def test_who_asks_too_often(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.change_settings("rate = 1")
    with world.running():
        found = [ask(world, "GET", "/v1/openapi.json")[0] for _ in range(4)]
    assert found[:2] == [200, 200] and 429 in found


def test_rates_are_of_one_client_and_bounded() -> None:
    now = [0.0]
    rates = Rates(1, 2, clock=lambda: now[0])
    assert [not rates.take("a") for _ in range(3)] == [True, True, False]
    assert not rates.take("b")
    now[0] = 1.0
    assert not rates.take("a") and rates.take("a")
    for number in range(2 * CLIENTS):
        rates.take(str(number))
    assert len(rates._buckets) == CLIENTS


def test_an_ipv6_client_is_its_network() -> None:
    """Whoever has one address there has 2 to the power of 64."""

    async def asked(address: str) -> int:
        class Transport:
            def get_extra_info(self, name: str, default: Any = None) -> Any:
                return (address, 1, 0, 0) if name == "peername" else default

        request = make_mocked_request("GET", "/", transport=Transport())
        return (await limit(request, answer)).status

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response()

    limit = bounded(Rates(1, 2))
    addresses = ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:3", "2001:db8:0:1::1", "192.0.2.1", "::ffff:192.0.2.1"]
    assert [asyncio.run(asked(address)) for address in addresses] == [200, 200, 429, 200, 200, 200]


def test_who_is_refused_all_the_time_does_not_fill_the_log() -> None:
    now = [0.0]
    refusals = Refusals(lambda: now[0])
    said = [refusals.entry("a", "no") for _ in range(200)]
    assert said == ["no"] * 60 + [None] * 140
    assert refusals.entry("b", "no") == "no"
    now[0] = 5.0
    assert refusals.entry("a", "no") == "(140 more refusals before it have no entry) no"
    assert refusals.entry("a", "no") is None
    for number in range(2 * CLIENTS):
        for _ in range(2):
            refusals._rates._burst = 1
            refusals.entry(str(number), "no")
    assert len(refusals._unwritten) == CLIENTS


def test_nor_does_it_in_the_database(tmp_path: Path) -> None:
    """Nobody has to be known to have evidence refused."""
    with World(tmp_path).running() as world:
        world.store()
        before = len(world.log())
        context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
        for _ in range(10):  # of the rate of requests there is enough
            connection = http.client.HTTPSConnection("localhost", world.port, context=context, timeout=20)
            for _ in range(10):
                connection.request("POST", "/kbs/v0/auth", json.dumps({"version": "0.4.0"}))
                answer = connection.getresponse()
                answer.read()
                cookie = answer.getheader("Set-Cookie", "").partition(";")[0]
                body = json.dumps({"tee-evidence": {"token": ""}, "runtime-data": {}})
                connection.request("POST", "/kbs/v0/attest", body, {"Cookie": cookie})
                answer = connection.getresponse()
                assert answer.status in (401, 429) and answer.read()
            connection.close()
        assert len(world.log()) - before <= 65


def test_what_strangers_send_is_not_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither what is no HTTP, nor a request that breaks off: else anybody fills the log, with what they like."""
    context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
    half = b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    for data in (b"GET / HTTP/1.1\r\nNO HEADER\r\n\r\n", b"\r\n\r\nNONSENSE\r\n\r\n", b"G\0T / HTTP/1.1\r\n\r\n", half):
        with socket.create_connection(("localhost", world.port), 10) as stream:
            tls = context.wrap_socket(stream, server_hostname="localhost")
            tls.sendall(data)
            if data is not half:
                assert tls.recv(100)
            tls.close()
    assert ask(world, "GET", "/v1/openapi.json")[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_never_ends_to_ask_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that comes byte by byte, long before the connection's time is over; who asks at once stays."""
    monkeypatch.setattr("vambrace.serving.doors.REQUEST_SECONDS", 0.5)
    context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
    ours = http.client.HTTPSConnection("localhost", world.port, context=context, timeout=20)
    with socket.create_connection(("localhost", world.port), 10) as stream:
        tls = context.wrap_socket(stream, server_hostname="localhost")
        ours.request("GET", "/v1/openapi.json")
        ours.getresponse().read()
        begun = time.monotonic()
        with pytest.raises(OSError):
            tls.sendall(b"GET / HTTP/1.1\r\nX: ")
            while time.monotonic() < begun + 20:
                tls.sendall(b"x")
                time.sleep(0.05)
        ours.request("GET", "/v1/openapi.json")
        assert ours.getresponse().status == 200
    ours.close()


def test_connections_of_one_client_are_bounded(tmp_path: Path) -> None:
    """From the first packet on: some never begin their handshake, and one has it behind it and asks nothing."""
    world = World(tmp_path)
    world.change_settings("connections_each = 3\nchallenge_seconds = 1\nsession_seconds = 1")
    context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
    with world.running(), contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection(("localhost", world.port), 10)) for _ in range(3)]
        tls = stack.enter_context(context.wrap_socket(made.pop(), server_hostname="localhost"))
        with pytest.raises(OSError):
            ask(world, "GET", "/v1/openapi.json")
        for stream in (*made, tls):  # nobody keeps others out for longer than a session
            stream.settimeout(20)
            with contextlib.suppress(ConnectionError):
                assert stream.recv(1) == b""
        assert ask(world, "GET", "/v1/openapi.json")[0] == 200


@pytest.mark.parametrize("after", ["%C2%B2", "%D9%A3", "-1", "", "1e3", "9" * 19])
def test_entries_after_no_number(world: World, after: str) -> None:
    """Digits of other scripts are digits to Python, and powers, too."""
    assert ask(world, "GET", f"/v1/audit/patients?after={after}", owner=world.owner)[0] == 400


def test_files_are_their_owners(tmp_path: Path) -> None:
    """Also in a folder that was there, and is open to others."""
    (tmp_path / "broker").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with World(tmp_path).running() as world:
            world.store()
            modes = {file.name: file.stat().st_mode & 0o777 for file in world.home.iterdir()}
    finally:
        os.umask(before)
    open_to_others = {name for name, mode in modes.items() if mode & 0o077}
    assert "broker.db" in modes and open_to_others == {"certificate.pem", "owner-patients.pem"}


def test_sessions_are_bounded_and_of_one_connection() -> None:
    class Connection:
        pass

    now = [0.0]
    sessions = Sessions(10, 100, lambda: now[0])
    connection = Connection()
    kept = [sessions.begin(connection) for _ in range(10)]
    assert len(sessions) == 4  # of one connection
    assert sessions.find(kept[-1].identifier, connection) is kept[-1]
    for other in (Connection(), None):
        with pytest.raises(NotReleased):
            sessions.find(kept[-1].identifier, other)
    many = [Connection() for _ in range(MAX_SESSIONS)]
    with pytest.raises(BrokerError, match="too many"):
        for each in many:
            sessions.begin(each)
    del many, each
    assert sessions.begin(connection)  # what is gone takes no room
    now[0] = 10.1
    with pytest.raises(NotReleased):
        sessions.find(kept[-1].identifier, connection)
    for _ in range(64):
        sessions.begin(connection)
    assert len(sessions) <= 4


def test_an_owner_sends_no_secret_in_the_clear(world: World) -> None:
    files = world.home / "certificate.pem", *world.owner.channel_paths
    with pytest.raises(UsageError, match="no broker's URL"):
        BrokerClient(f"http://127.0.0.1:{world.port}", *files)
    # Nor in an older TLS than the broker has, to somebody who stands in its place.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(world.home / "certificate.pem", world.home / "key.pem")
    said: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        stream, _ = listener.accept()
        with stream, contextlib.suppress(OSError):
            said.append(context.wrap_socket(stream, server_side=True).recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        with BrokerClient(f"https://127.0.0.1:{port}", *files) as client, pytest.raises(BrokerError):
            client.put(SECRET, b"x", None)
        thread.join()
    assert not said


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    world = World(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = world.home / "broker.toml"
        settings.write_text(settings.read_text().replace("port = 0", f"port = {port}"))
        with pytest.raises(BrokerError) as error:
            world.start()
    assert error.value.message == f"cannot listen on 127.0.0.1:{port}: Address already in use"


def test_settings(tmp_path: Path) -> None:
    world = World(tmp_path)
    good = {"certificate": "c", "key": "k", "master_key": "m", "database": "sqlite:///x", "platforms": {},
            "repositories": {}}  # fmt: skip
    assert parse_settings(dict(good), tmp_path).database == f"sqlite:///{tmp_path}/x"
    for change in (
        {"other": 1}, {"port": "1"}, {"port": 65536}, {"rate": 0}, {"listen": 1}, {"database": 1}, {"platforms": []},
        {"platforms": {"a": {"root": "x"}}}, {"platforms": {"a": {"root": "x", "references": "y", "insecure": True}}},
        {"platforms": {"A": {"root": "x", "references": "y"}}}, {"repositories": {"a": {}}},
        {"challenge_seconds": True},
        {"repositories": {"a": {"owners": []}}}, {"repositories": {"a/b": {"owners": ["x"]}}},
        {"repositories": {"a": {"owners": ["missing.pem"]}}},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            parse_settings({**good, **change}, tmp_path)
    for missing in good:
        with pytest.raises(ConfigError, match=missing):
            parse_settings({key: value for key, value in good.items() if key != missing}, tmp_path)
    with pytest.raises(ConfigError, match="there is a broker"):
        setup.create(world.home, names=["localhost"], platforms={}, repositories={})


def test_policies_are_read_back_as_they_were(world: World) -> None:
    policy = ReleasePolicy.parse("default", world.policy(cache="confirmed", debug=True))
    assert ReleasePolicy.parse(*json.loads(policy.encode()).values()) == policy


def test_it_is_slow_to_nobody(world: World) -> None:
    """A request that never ends keeps no other one waiting."""
    context = ssl.create_default_context(cafile=str(world.home / "certificate.pem"))
    with socket.create_connection(("127.0.0.1", world.port), 10) as stream:
        tls = context.wrap_socket(stream, server_hostname="localhost")
        tls.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.1)
        assert ask(world, "GET", f"/v1/secrets/{SECRET}", owner=world.owner)[0] == 200
