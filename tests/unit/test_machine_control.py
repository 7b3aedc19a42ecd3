"""The VMM process as the daemon sees it, up to where KVM is needed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_kernel, make_realm
from cryptography.hazmat.primitives.hashes import SHA256, SM3
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vambrace.machine.descriptors import MOST, Descriptors
from vambrace.machine.keys import page_key
from vambrace.machine.request import LoadRequest
from vambrace.suite import SM


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

    def send(self, packet: bytes, files: Sequence[int] = ()) -> dict[str, Any]:
        socket.send_fds(self.socket, [packet], files)
        answer: dict[str, Any] = json.loads(self.socket.recv(1 << 17))
        return answer

    def request(self, op: str, files: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        answer = self.send(json.dumps({"id": 7, "op": op, **arguments}).encode(), files)
        assert answer["id"] == 7
        return answer

    def load(self, paths: dict[str, Path], **changes: Any) -> dict[str, Any]:
        """Ask for a domain of these files and devices, by their descriptors' names."""
        with ExitStack() as stack:
            files = [os.open(path, os.O_RDWR if DEVICES in path.parents else os.O_RDONLY) for path in paths.values()]
            for file in files:
                stack.callback(os.close, file)
            identity = {"instance": "11" * 16, "share": "a5" * 32, "cid": 3}
            return self.request("load", files, **({"descriptors": list(paths)} | identity | changes))

    def files(self) -> list[str]:
        """What the process has open of this test's files and of devices."""
        opened = [str(link.readlink()) for link in Path(f"/proc/{self.process.pid}/fd").iterdir()]
        return [path for path in opened if path == "/dev/zero" or "/pytest-" in path]

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


DEVICES = Path("/dev")


def domain(folder: Path) -> dict[str, Path]:
    """What a domain without disks consists of; its devices are none."""
    contents = {"config": make_realm(disks=()).encode(), "kernel": make_kernel(), "initrd": b"initrd"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    devices = dict.fromkeys(("kvm", "userfaultfd", "vhost-vsock"), DEVICES / "zero")
    return {name: folder / name for name in contents} | devices


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
        ({"descriptors": "x"}, "descriptors: a list"),
        ({"descriptors": [1] * 6}, "descriptors: a list"),
        ({"descriptors": ["config"]}, "descriptors: 1 are named, 6 were sent"),
        ({"descriptors": []}, "descriptors: 0 are named, 6 were sent"),
        ({"descriptors": ["config"] * 6}, "a name is given twice"),
        ({"cid": None}, "cid: an integer"),
    ],
)
def test_load_says_what_is_wrong_and_never_the_share(
    daemon: Daemon, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    answer = daemon.load(domain(tmp_path), **change)
    assert answer["ok"] is False
    assert error in answer["error"]
    assert daemon.files() == []
    status, errors = daemon.end()
    assert (status, errors) == (0, b"")
    assert "a5a5" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kernel": None}, "descriptor kernel is missing"),
        ({"config": None}, "descriptor config is missing"),
        ({"kvm": None}, "descriptor kvm is missing"),
        ({"disk:base": Path("initrd")}, "descriptor disk:base is not this domain's"),
        ({"treasure": Path("initrd")}, "descriptor 'treasure' is of no known kind"),
        ({"vhost-vsock": Path("initrd")}, "descriptor vhost-vsock is not a device"),
        ({"kernel": DEVICES / "zero"}, "descriptor kernel is not a file"),
        ({"initrd": Path("/")}, "descriptor initrd is not a file"),
        ({"config": Path("initrd")}, "configuration"),
        ({"kernel": Path("empty")}, "kernel: cannot be read"),
        ({}, "userfaultfd"),
    ],
)
def test_load_takes_what_belongs_to_the_domain_and_closes_all(
    daemon: Daemon, tmp_path: Path, change: dict[str, Path | None], error: str
) -> None:
    (tmp_path / "empty").touch()
    paths = {name: tmp_path / path for name, path in (domain(tmp_path) | change).items() if path is not None}
    answer = daemon.load(paths)
    assert answer["ok"] is False and error in answer["error"]
    assert daemon.request("destroy")["ok"]
    assert daemon.end() == (0, b"")


def asked(daemon: Daemon) -> dict[str, Any]:
    question: dict[str, Any] = json.loads(daemon.socket.recv(1 << 17))
    return question


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"answer": False, "error": "not these"}, "not these"),
        ({"answer": False}, "error: a string"),
        ({"answer": True, "keep": "%"}, "keep: not base64"),
        ({"answer": True}, "keep: a string"),
        ({"answer": True, "keep": "AAAA"}, "the encrypted window"),
        ({"answer": True, "keep": 4096 * "A"}, "only 0 of"),
    ],
)
def test_page_frames_are_asked_for(daemon: Daemon, tmp_path: Path, answer: dict[str, Any], error: str) -> None:
    """Little by little, of so many pages as the daemon allows; what it answers is checked."""
    start_load(daemon, tmp_path, draw=24576)
    question = asked(daemon)
    assert question["ask"] == "choose" and question["pages"] == 24576 and question["address"] % 4096 == 0
    daemon.socket.send(json.dumps(answer).encode())
    reply = json.loads(daemon.socket.recv(1 << 17))
    assert reply["id"] == 7 and reply["ok"] is False and error in reply["error"]
    assert daemon.request("destroy")["ok"]
    assert daemon.end() == (0, b"")


def start_load(daemon: Daemon, folder: Path, **changes: Any) -> None:
    paths = domain(folder) | {"userfaultfd": DEVICES / "userfaultfd"}
    with ExitStack() as stack:
        files = [os.open(path, os.O_RDWR if DEVICES in path.parents else os.O_RDONLY) for path in paths.values()]
        for file in files:
            stack.callback(os.close, file)
        load = {"id": 7, "op": "load", "descriptors": list(paths), "instance": "11" * 16, "share": "a5" * 32, "cid": 3}
        socket.send_fds(daemon.socket, [json.dumps(load | changes).encode()], files)


@pytest.mark.usefixtures("kernel")
def test_the_end_may_come_in_place_of_an_answer(daemon: Daemon, tmp_path: Path) -> None:
    start_load(daemon, tmp_path, draw=4096)
    assert asked(daemon)["pages"] == 4096
    daemon.socket.send(b'{"id": 8, "op": "destroy"}')
    replies = [json.loads(daemon.socket.recv(1 << 17)) for _ in range(2)]
    assert [(reply["id"], reply["ok"]) for reply in replies] == [(7, False), (8, True)]
    assert daemon.process.wait(30) == 0


@pytest.mark.usefixtures("kernel")
def test_a_daemon_that_goes_while_it_is_asked(daemon: Daemon, tmp_path: Path) -> None:
    start_load(daemon, tmp_path, draw=4096)
    asked(daemon)
    assert daemon.end() == (0, b"")


def test_no_descriptor_is_kept(daemon: Daemon, tmp_path: Path) -> None:
    """Neither after a refusal, nor one that nobody asked for, nor too many of them."""
    assert daemon.files() == []
    paths = domain(tmp_path)
    assert not daemon.load(paths | {"kernel": DEVICES / "zero"})["ok"]
    assert daemon.files() == []
    with (tmp_path / "initrd").open("rb") as file:
        assert "0 are named, 1 were sent" in daemon.request("stats", [file.fileno()])["error"]
        answer = daemon.request("stats", [file.fileno()] * (MOST + 1), descriptors=["kernel"] * MOST)
        assert f"more than {MOST}" in answer["error"]
    assert daemon.files() == []
    with (tmp_path / "initrd").open("r+b") as file:
        assert "open for more than reading" in daemon.request("load", [file.fileno()], descriptors=["initrd"])["error"]
    # What a machine keeps for as long as it lives goes with it.
    assert not daemon.load(paths)["ok"]
    assert daemon.files() == ["/dev/zero"], "the userfaultfd"
    assert daemon.request("destroy")["ok"]


def test_the_process_cannot_be_inspected(daemon: Daemon) -> None:
    assert daemon.request("stats")["ok"] is False  # it is up and hardened
    process = Path(f"/proc/{daemon.process.pid}")
    limits = (process / "limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core"))
    assert core.split()[4:6] == ["0", "0"]


def test_a_request_does_not_print_its_key() -> None:
    request = LoadRequest(Descriptors(), b"i" * 16, b"k" * 32, 3)
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
    of_sm = HKDF(SM3(), 32, salt=None, info=b"vambrace-page-key-1" + instance).derive(share + own)
    assert page_key(share, instance, SM.digests[0]) == of_sm != expected
