"""The VMM process as the daemon sees it, up to where KVM is needed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_kernel, make_realm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vambrace.machine.keys import page_key
from vambrace.machine.vmm import LoadRequest


class Daemon:
    """The other end of the control socket of a real VMM process."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(30)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vambrace.machine", "--control", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()

    def send(self, packet: bytes) -> dict[str, Any]:
        self.socket.send(packet)
        answer: dict[str, Any] = json.loads(self.socket.recv(1 << 17))
        return answer

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        answer = self.send(json.dumps({"id": 7, "op": op, **arguments}).encode())
        assert answer["id"] == 7
        return answer

    def end(self) -> tuple[int, bytes]:
        """Exit status and what was written to stderr."""
        self.socket.close()
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.socket.close()
    daemon.process.kill()
    daemon.process.communicate()


def load_arguments(folder: Path) -> dict[str, Any]:
    config = make_realm(disks=())
    (folder / "config").write_bytes(config.encode())
    (folder / "kernel").write_bytes(make_kernel())
    (folder / "initrd").write_bytes(b"initrd")
    return {
        **{name: str(folder / name) for name in ("config", "kernel", "initrd")},
        "disks": [],
        "instance": "11" * 16,
        "share": "a5" * 32,
        "cid": 3,
    }


def test_ends_quietly_when_the_daemon_is_gone(daemon: Daemon) -> None:
    assert daemon.end() == (0, b"")


def test_destroy_replies_then_exits(daemon: Daemon) -> None:
    assert daemon.request("destroy") == {"id": 7, "ok": True}
    assert daemon.process.wait(30) == 0


@pytest.mark.parametrize("op", ["start", "stats", "encrypt", "change", "sample", "reuse", "agent"])
def test_refuses_what_comes_before_load(daemon: Daemon, op: str) -> None:
    answer = daemon.request(op, zone=0, percent=5, data="", on=True)
    assert answer["ok"] is False
    assert "not possible while empty" in answer["error"]


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (b"\xff", "not JSON"),
        (b"[1]", "not an object"),
        (b"{}", "no operation"),
        (b"[" * 60000, "not JSON"),
        (b" " * 70000, "too long"),
        (b'{"op":"agent","data":"%"}', "not base64"),
        (b'{"op":"agent","data":"\xc3\xa9"}', "not base64"),
        (b'{"op":"encrypt","zone":"0","percent":5}', "zone: an integer"),
        (b'{"op":"sample","on":true,"zones":0}', "zones: a list"),
        (b'{"op":"sample","on":true,"zones":[true]}', "zones: a list"),
        (b'{"op":"sample","on":1}', "on: true or false"),
        (b'{"op":"encrypt","zone":true,"percent":5}', "zone: an integer"),
    ],
)
def test_survives_malformed_packets(daemon: Daemon, packet: bytes, error: str) -> None:
    answer = daemon.send(packet)
    assert answer["ok"] is False
    assert error in answer["error"]
    assert daemon.request("destroy")["ok"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"share": "a5" * 31}, "share: 32 bytes"),
        ({"share": "zz" * 32}, "share: 32 bytes"),
        ({"instance": ""}, "instance: 16 bytes"),
        ({"disks": "x"}, "disks: a list"),
        ({"cid": None}, "cid: an integer"),
        ({"kernel": "/nonexistent"}, "kernel: cannot be read"),
        ({"config": "/nonexistent"}, "nonexistent: No such file"),
        ({"config": "/non\0existent"}, "null byte"),
        ({"config": "/dev/null"}, "configuration"),
    ],
)
def test_load_says_what_is_wrong_and_never_the_share(
    daemon: Daemon, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    answer = daemon.request("load", **{**load_arguments(tmp_path), **change})
    assert answer["ok"] is False
    assert error in answer["error"]
    status, errors = daemon.end()
    assert (status, errors) == (0, b"")
    assert "a5a5" not in json.dumps(answer)


def test_the_process_cannot_be_inspected(daemon: Daemon) -> None:
    assert daemon.request("stats")["ok"] is False  # it is up and hardened
    process = Path(f"/proc/{daemon.process.pid}")
    limits = (process / "limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core"))
    assert core.split()[4:6] == ["0", "0"]


def test_a_request_does_not_print_its_key() -> None:
    request = LoadRequest(Path("c"), Path("k"), Path("i"), (), b"i" * 16, b"k" * 32, 3)
    assert "kk" not in repr(request)


def test_usage() -> None:
    result = subprocess.run([sys.executable, "-m", "vambrace.machine"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "usage" in result.stderr


def test_the_page_key_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """HKDF as another library has it; neither source alone fixes the key."""
    share, instance, own = b"s" * 32, b"i" * 16, b"o" * 32
    assert len({page_key(share, instance) for _ in range(4)}) == 4
    monkeypatch.setattr(os, "urandom", lambda length: own[:length])
    expected = HKDF(SHA256(), 32, salt=None, info=b"vambrace-page-key-1" + instance).derive(share + own)
    assert page_key(share, instance) == expected
    assert page_key(b"t" * 32, instance) != expected
    assert page_key(share, b"j" * 16) != expected
