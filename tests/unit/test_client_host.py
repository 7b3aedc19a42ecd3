"""The host's API as the client sees it: errors, limits, and hosts that lie."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_harness import World, living_world

from vambrace.client.host import DomainInfo, Host, problem
from vambrace.client.said import plain
from vambrace.emulator.provision import Credentials
from vambrace.errors import (
    CapacityError,
    ConfigError,
    Conflict,
    HostError,
    HostUnreachable,
    ImageError,
    MessageRefused,
    NotFound,
    TrustZoneError,
    UsageError,
)
from vambrace.image import Bundle


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("world")
        patch.setenv("VAMBRACE_HOME", str(directory / "home"))
        with living_world(directory) as world:
            yield world


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    with Host.current(context=world.context) as found:
        yield found


def test_info_and_images(host: Host, world: World) -> None:
    assert host.info() == {"version": "test"}
    digest = hashlib.sha256(world.bundle.read_bytes()).hexdigest()
    assert not host.has_image(digest)
    shares: list[tuple[int, int]] = []
    host.upload(world.bundle, digest, lambda step, done=0, total=0: shares.append((done, total)))
    size = world.bundle.stat().st_size
    assert shares[-2:] == [(size, size), (0, 0)] and host.has_image(digest)
    assert host.images() == [{"sha256": digest}]


def test_what_the_host_has_is_not_sent(host: Host, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(world.bundle.read_bytes()).hexdigest()
    monkeypatch.setattr("vambrace.client.host.WORTH_ASKING", 1)
    bundle = Bundle.open(world.bundle)
    parts = (bundle.kernel, *bundle.disks)
    monkeypatch.setattr(world.host, "images", {})
    monkeypatch.setattr(world.host, "sent", 0)
    monkeypatch.setattr(world.host, "blobs", {part.digest: part.read() for part in parts})
    host.send(bundle, digest)
    size = world.bundle.stat().st_size
    assert host.has_image(digest) and world.host.sent == size - sum(part.size for part in parts)


@pytest.mark.parametrize("said", ["none", "others", "neither"])
def test_what_the_host_has_no_more_is_sent(
    host: Host, world: World, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Blobs that are not there any more, that are damaged, and a host that cannot look: none keeps an image out."""

    def has_blob(host: Host, digest: str) -> bool:
        if said == "neither":
            raise HostError("internal error of the host", status=500)
        return True

    digest = hashlib.sha256(world.bundle.read_bytes()).hexdigest()
    bundle = Bundle.open(world.bundle)
    monkeypatch.setattr("vambrace.client.host.WORTH_ASKING", 1)
    monkeypatch.setattr(Host, "has_blob", has_blob)
    monkeypatch.setattr(world.host, "images", {})
    monkeypatch.setattr(world.host, "sent", 0)
    if said == "others":
        parts = bundle.parts
        monkeypatch.setattr(world.host, "blobs", {part.digest: bytes(part.size) for part in parts})
    host.send(bundle, digest)
    size = world.bundle.stat().st_size
    assert host.has_image(digest) and size <= world.host.sent < 2 * size


def test_an_upload_that_is_another(host: Host, world: World) -> None:
    with pytest.raises(ImageError, match="digest") as caught:
        host.upload(world.bundle, "0" * 64)
    assert caught.value.hint == "send it again"


def test_no_such_realm(host: Host) -> None:
    with pytest.raises(NotFound) as caught:
        host.domain(str(uuid.uuid4()))
    assert caught.value.status == 404 and caught.value.hint == "list them"


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (404, "not-found", NotFound),
        (409, "conflict", Conflict),
        (507, "capacity", CapacityError),
        (429, "capacity", CapacityError),
        (503, "trustzone", TrustZoneError),
        (503, "host", HostError),
        (404, "none", NotFound),
        (403, "message-refused", MessageRefused),
        (422, "image", ImageError),
        (422, "configuration", ConfigError),
        (400, "request", UsageError),
        (500, "internal", HostError),
    ],
)
def test_problems_become_errors(status: int, kind: str, error: type[Exception]) -> None:
    body = {"type": f"tag:vambrace.dev,2026:problem/{kind}", "detail": "why", "hint": "what to do"}
    raised = problem(status, json.dumps(body).encode())
    assert type(raised) is error
    assert (raised.message, raised.hint) == ("why", "what to do")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"detail": 7}', b'{"detail": "\\u001b[31mred\\nx"}'])
def test_answers_of_others_are_errors_too(body: bytes) -> None:
    raised = problem(502, body)
    assert isinstance(raised, HostError) and raised.status == 502
    assert raised.message.isprintable()


def test_the_client_needs_its_certificate(world: World, tmp_path: Path) -> None:
    strange = Credentials(tmp_path / "strange")
    strange.create()
    known = world.host.credentials
    with pytest.raises(HostUnreachable, match="without an answer|does not accept"):
        Host(world.host.url, strange.client_certificate, strange.client_key, known.ca).info()
    with pytest.raises(HostUnreachable, match="not the host that was expected"):
        Host(world.host.url, known.client_certificate, known.client_key, strange.ca).info()
    with pytest.raises(ConfigError, match="cannot be read"):
        Host(world.host.url, tmp_path / "none", known.client_key, known.ca)


def test_nobody_is_there(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys = world.host.credentials
    with pytest.raises(HostUnreachable, match="cannot be reached"):
        Host(f"https://127.0.0.1:{port}", keys.client_certificate, keys.client_key, keys.ca).info()


@pytest.mark.parametrize("url", ["http://x", "https://", "https://x/y", "https://a:b@x", "ftp://x", "x"])
def test_only_https(world: World, url: str) -> None:
    keys = world.host.credentials
    with pytest.raises(UsageError):
        Host(url, keys.client_certificate, keys.client_key, keys.ca)


@pytest.mark.parametrize(
    "value", [None, [], {}, {"uuid": "../../etc"}, {"uuid": 7}], ids=["none", "list", "empty", "path", "number"]
)
def test_what_is_no_realm(value: object) -> None:
    with pytest.raises(HostError):
        DomainInfo.decode(value)


def test_text_of_the_host_cannot_speak_to_the_terminal() -> None:
    info = DomainInfo.decode({"uuid": str(uuid.uuid4()), "name": "a\x1b]0;x\x07\r\nb", "state": 7})
    assert info.name == "a?]0;x???b" and info.state == "7"
    assert plain("x" * 5000) == "x" * 1000


def test_an_endless_answer_is_cut(world: World) -> None:
    keys = world.host.credentials
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.server / "server.pem", keys.server / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            stream, _ = listener.accept()
            try:
                with context.wrap_socket(stream, server_side=True) as tls:
                    tls.recv(4096)
                    tls.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while True:
                        tls.sendall(b"x" * 65536)
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        with (
            Host(f"https://127.0.0.1:{port}", keys.client_certificate, keys.client_key, keys.ca) as host,
            pytest.raises(HostError, match="more than"),
        ):
            host.info()
