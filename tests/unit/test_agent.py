"""The agent without a Realm: its loop, channel and supervision, with a monitor at the end of a socket pair."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_realm import INSTANCE, FakeMonitor, Realm, shell, wait_for
from config_factory import make_certificate, owner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from vambrace_agent import AgentError, channel, main, pace, system
from vambrace_agent.logs import Log
from vambrace_agent.monitor import Monitor, MonitorRefused

NONCE = "07" * 32

Make = Callable[..., Realm]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    def build(*applications: dict[str, Any], collect_seconds: float = 20) -> Realm:
        return Realm(tmp_path, list(applications), collect_seconds)

    yield build


def test_the_main_path(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "results/analysis/out.txt"
    realm = make(
        shell("analysis", f"echo hello; echo 42 > {out}", results=["/results/analysis/out.txt"]),
        shell("report", "echo $WHO", environment={"WHO": "me"}),
    )
    client = realm.client()
    reply, _ = client.ask("attest", nonce=NONCE)
    challenge = hashlib.sha512(
        b"vambrace-channel-1" + bytes.fromhex(NONCE) + hashlib.sha256(realm.key).digest() + INSTANCE
    )
    assert base64.b64decode(reply["token"]) == b"token:" + challenge.hexdigest().encode()
    peer = x509.load_der_x509_certificate(client.tls.getpeercert(binary_form=True) or b"").public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    assert peer.public_bytes(serialization.Encoding.DER, form) == realm.key
    status, _ = client.ask("status")
    assert {a["state"] for a in status["applications"]} == {"waiting"}
    assert client.ask("clock", time=1_800_000_000_000_000_000)[0] == {"ok": True, "set": True}
    for nonsense in (-1, 1.5, "now", 1 << 62):
        assert client.ask("clock", time=nonsense)[0]["error"].startswith("time: ")
    assert client.ask("start")[0] == {"ok": True}
    assert client.ask("start")[0] == {"ok": True}
    # For programs time only goes on.
    assert client.ask("clock", time=1_900_000_000_000_000_000)[0] == {"ok": True, "set": False}
    assert realm.clock == [1_800_000_000_000_000_000]
    assert wait_for(client, "analysis", "succeeded")["exit_code"] == 0
    wait_for(client, "report", "succeeded")
    assert client.ask("logs", application="analysis", offset=0)[1] == b"hello\n"
    assert client.ask("logs", application="report", offset=1)[1] == b"e\n"
    results, _ = client.ask("results")
    assert results["results"] == [{"application": "analysis", "path": "/results/analysis/out.txt", "size": 3}]
    reply, data = client.ask("result", application="analysis", path="/results/analysis/out.txt", offset=0)
    assert (reply["size"], data) == (3, b"42\n")
    reply = client.ask("encrypt", message="AAAA")[0]
    assert reply == {"ok": True, "change": {"zone": 1, "percent": 95, "left": 5}}
    assert client.ask("change", zone=1)[0] == {"ok": True, "change": {"zone": 1, "left": 3}}
    assert client.ask("auto", message="AAAA")[0] == {"ok": True, "auto": [None, {"lowest": 30}]}
    assert client.ask("stats")[0] == {"ok": True, "zones": [{"pages": 1}], "auto": [None]}
    assert client.ask("sample", on=True, seconds=5)[0]["ok"]
    assert not client.ask("sample", on=1)[0]["ok"]
    assert client.ask("reuse")[0] == {"ok": True, "zones": [{"touches": 2}], "fault_ns": 5}
    assert client.ask("messages")[0] == {"ok": True, "messages": [{"endpoint": "records"}]}
    assert not client.ask("connect", endpoint=0, stream=1)[0]["ok"]  # no request of an owner's
    assert realm.outcome is None
    client.ask("collected")
    assert realm.ended() == ("succeeded", "")
    assert [state for state, _ in realm.monitor.reports] == ["ready", "running"]


def test_results_wait_only_so_long(make: Make) -> None:
    realm = make(shell("a", "true", results=["/results/a/x"]), collect_seconds=0.5)
    realm.client().ask("start")
    assert realm.ended() == ("succeeded", "")


def test_without_results_or_owner_it_ends_at_once(make: Make) -> None:
    realm = make(shell("a", "sleep 0.3"), collect_seconds=3600)
    client = realm.client()
    client.ask("start")
    client.tls.close()
    client.file.close()
    assert realm.ended() == ("succeeded", "")


def test_a_failure_is_told_with_its_code_only(make: Make) -> None:
    realm = make(shell("a", "echo secret; exit 3"), shell("b", "sleep 100"))
    client = realm.client()
    client.ask("start")
    assert wait_for(client, "a", "failed")["exit_code"] == 3
    assert client.ask("logs", application="a")[1] == b"secret\n"
    client.ask("collected")
    assert realm.ended() == ("failed", "application a: exit code 3")
    assert realm.supervisor.processes[1].exit_code == 143  # the other one was asked to end


def test_restarts_within_the_bound(make: Make, tmp_path: Path) -> None:
    realm = make(shell("a", f"echo x >> {tmp_path}/runs; kill -9 $$", restarts=2))
    client = realm.client()
    client.ask("start")
    application = wait_for(client, "a", "failed")
    assert (application["restarts"], application["exit_code"]) == (2, 137)
    assert (tmp_path / "runs").read_text() == "x\n" * 3


def test_no_such_program(make: Make) -> None:
    realm = make({"name": "a", "command": ["/no/such/program"]})
    client = realm.client()
    client.ask("start")
    assert wait_for(client, "a", "failed")["exit_code"] == 126


def test_only_the_owner_is_served(make: Make) -> None:
    realm = make(shell("a", "true"))
    stranger = make_certificate()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        realm.client(stranger).ask("status")
    # The owner's certificate beside another key: the handshake's signature does not fit.
    with pytest.raises((ssl.SSLError, ConnectionError)):
        realm.client((owner()[0], stranger[1])).ask("status")
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(realm.path))
    raw.sendall(b'{"op": "status"}\n')
    raw.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        assert b"applications" not in raw.recv(4096)
    assert realm.client().ask("status")[0]["ok"]


def test_tls_1_2_is_refused(make: Make) -> None:
    realm = make(shell("a", "true"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(realm.path))
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"", "object"),
        (b"[]", "object"),
        (b"{", "object"),
        (b"[" * 2000, "object"),
        (b'{"op": "format"}', "no such request"),
        (b'{"op": ["status"]}', "no such request"),
        (b'{"op": "attest"}', "nonce"),
        (b'{"op": "attest", "nonce": "zz"}', "nonce"),
        (b'{"op": "attest", "nonce": "' + b" " * 64 + b'"}', "nonce"),
        (b'{"op": "logs", "application": "b"}', "no such application"),
        (b'{"op": "logs", "application": "a", "offset": -1}', "offset"),
        (b'{"op": "logs", "application": "a", "offset": true}', "offset"),
        (b'{"op": "result", "application": "a", "path": "/etc/passwd"}', "declared"),
        (b'{"op": "result", "application": "a", "path": "/results/a/none"}', "not there"),
        (b'{"op": "encrypt", "message": 1}', "message"),
        (b'{"op": "encrypt", "message": "forged"}', "not signed by the owner"),
        (b'{"op": "change", "zone": -1}', "zone"),
        (b'{"op": "auto", "message": ["AAAA"]}', "message"),
        (b'{"op": "auto", "message": "forged"}', "not signed by the owner"),
        (b'{"op": "change", "zone": "1"}', "zone"),
    ],
)
def test_wrong_requests(make: Make, request_: bytes, error: str) -> None:
    realm = make(shell("a", "true", results=["/results/a/none"]))
    client = realm.client()
    reply, _ = client.send(request_)
    assert reply["ok"] is False
    assert error in reply["error"]
    assert client.ask("status")[0]["ok"]


def test_an_endless_line_ends_the_connection(make: Make) -> None:
    client = make(shell("a", "true")).client()
    with pytest.raises((ConnectionError, ssl.SSLError)):
        client.send(b"x" * 200_000)


def test_too_many_connections(make: Make) -> None:
    realm = make(shell("a", "true"))
    kept = [realm.client() for _ in range(channel.MAX_CONNECTIONS)]
    for client in kept:
        client.ask("status")
    with pytest.raises((OSError, ssl.SSLError)):
        realm.client().ask("status")
    kept[0].file.close()
    kept[0].tls.close()
    time.sleep(0.5)
    assert realm.client().ask("status")[0]["ok"]


def test_no_memory_for_a_connection_s_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed, more of them than there may be at once, and the agent lives on."""
    realm = make(shell("analysis", "sleep 60"))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(channel.MAX_CONNECTIONS + 1):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(20)
            stream.connect(str(realm.path))
            assert stream.recv(1) == b""
    monkeypatch.setattr(threading.Thread, "start", start)
    assert realm.client().ask("status")[0]["ok"]


def test_no_descriptor_for_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who accepts waits a moment, and does not spin; where there is nobody it does not wait."""
    slept: list[float] = []
    monkeypatch.setattr("vambrace_agent.pace.time.sleep", slept.append)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "door"))
        listener.listen()
        listener.setblocking(False)
        assert pace.accept(listener) is None and slept == []
        client.connect(str(tmp_path / "door"))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            assert pace.accept(listener) is None and slept == [pace.RETRY_SECONDS]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        accepted = pace.accept(listener)
        assert accepted is not None
        accepted[0].close()


@pytest.mark.parametrize("kind", ["link", "linked folder", "pipe", "folder"])
def test_results_that_are_no_files(make: Make, tmp_path: Path, kind: str) -> None:
    realm = make(shell("a", "true", results=["/results/a/d/x"]))
    folder = tmp_path / "results/a"
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "x").write_text("secret")
    if kind == "linked folder":
        (folder / "d").symlink_to(secret)
    else:
        (folder / "d").mkdir()
        if kind == "link":
            (folder / "d/x").symlink_to(secret / "x")
        elif kind == "pipe":
            os.mkfifo(folder / "d/x")
        else:
            (folder / "d/x").mkdir()
    client = realm.client()
    assert client.ask("results")[0]["results"] == []
    reply, data = client.ask("result", application="a", path="/results/a/d/x", offset=0)
    assert (reply["ok"], data) == (False, b"")


def test_much_output_keeps_the_end(make: Make) -> None:
    realm = make(shell("a", "seq 1 400000"))
    client = realm.client()
    client.ask("start")
    wait_for(client, "a", "succeeded")
    reply, data = client.ask("logs", application="a", offset=0)
    assert reply["end"] - reply["offset"] == 1 << 20
    while reply["offset"] + len(data) < reply["end"]:
        reply, data = client.ask("logs", application="a", offset=reply["offset"] + len(data))
    assert data.endswith(b"399999\n400000\n")


def test_log_ring(tmp_path: Path) -> None:
    log = Log(str(tmp_path), size=10)
    written = b""
    for number in range(60):
        piece = bytes([number]) * (number % 13)
        log.append(piece)
        written += piece
        assert log.end == len(written)
        assert log.read(0, 100) == (log.start, written[-10:])
        assert log.read(log.end - min(3, log.end), 2)[1] == written[-3:][:2]
        assert log.read(log.end + 5, 2) == (log.end, b"")


def test_monitor_that_lies_or_sleeps() -> None:
    ours, theirs = socket.socketpair()
    port = Monitor(theirs.detach(), timeout=0.3)
    with pytest.raises(AgentError, match="does not answer"):
        port.stats()
    ours.sendall(b'{"id": 1, "ok": true}\n{"id": 2, "ok": false, "error": "no"}\n')
    with pytest.raises(MonitorRefused, match="no"):
        port.stats()
    for noise in (b"[]\n", b"{\n"):
        ours.sendall(noise)
        with pytest.raises(AgentError, match="not understood"):
            port.stats()
    ours.sendall(b"x" * 100_000)
    with pytest.raises(AgentError, match="too long|not answer"):
        port.stats()


def test_a_kernel_that_cannot_be_hardened_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent reports why and turns the machine off; nothing else is done first."""
    fake = FakeMonitor()
    off = []
    monkeypatch.setattr(main.monitor, "open_port", lambda: fake.agent_fd)
    monkeypatch.setattr(system, "lacks", lambda number, arguments: False)
    monkeypatch.setattr(system, "SETTINGS", {"vambrace/none": (system.EXACTLY, "0")})
    monkeypatch.setattr(system, "power_off", lambda: off.append(True))
    monkeypatch.setattr(main, "_life", lambda port: pytest.fail("it went on"))
    main.main()
    assert off
    (report,) = fake.requests
    assert (report["op"], report["state"]) == ("report", "failed")
    assert "vambrace/none" in report["detail"]


def test_its_owner_ends_an_application(make: Make) -> None:
    """One that ends as it is asked to has succeeded; one that does not is killed when its time is over."""
    polite, stubborn = "exec sleep 60", "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    made = make(
        {"name": "a", "command": ["sh", "-c", polite], "restarts": 3},
        {"name": "b", "command": ["sh", "-c", stubborn], "restarts": 3},
    )
    made.supervisor.processes[1].application.stop_seconds = 1
    client = made.client()
    client.ask("start")
    wait_for(client, "a", "running")
    while b"ready" not in client.ask("logs", application="b")[1]:
        time.sleep(0.05)
    assert client.ask("stop", application="c")[0] == {"ok": False, "error": "no such application"}
    assert client.ask("stop", application="a")[0] == {"ok": True}
    assert wait_for(client, "a", "succeeded")["exit_code"] == 143
    assert client.ask("stop")[0] == {"ok": True}
    ended = wait_for(client, "b", "failed")
    assert (ended["exit_code"], ended["restarts"]) == (137, 0)
    assert made.ended() == ("failed", "application b: exit code 137")
