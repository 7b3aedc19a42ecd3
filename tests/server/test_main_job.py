"""The main job and its refusals on the real stack: TF-A, OP-TEE, Linux/KVM at EL2, our VMM, a Realm."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vambrace.attest.token import decode_evidence
from vambrace.emulator.server import Server
from vambrace.errors import HostError, MessageRefused, VambraceError

ROOT = Path(__file__).parent.parent.parent


def test_demo(server: Server, tmp_path: Path) -> None:
    """The demo shows all that it claims: same measurement, bounded plaintext, results, nothing left, no for a fake."""
    report = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, "-m", "examples.patients.demo", "--work", str(tmp_path / "work"), "--report", str(report)],
        cwd=ROOT,
        env={**os.environ, "VAMBRACE_SERVER": str(server.home)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    figures = json.loads(report.read_text())
    assert figures["measurement"]["expected"] == figures["measurement"]["token"]
    assert figures["verification"]["verdict"] == "yes"
    running = [dump for dump in figures["dumps"] if dump["moment"] == "running"]
    assert [dump["percent"] for dump in running] == [80, 30, 95]
    # The canary is found at all, so that the search proves something; and never more often than allowed.
    assert running[1]["pages_found"] > 0
    assert all(dump["pages_found"] <= dump["pages_allowed"] for dump in figures["dumps"])
    assert figures["dumps"][-1]["pages_found"] == 0
    assert figures["tampered"] == {"verdict": "no", "executed": False, "state": "refused"}
    # Neither the canary nor anything around it is in what the host wrote.
    for log in ("console.log", "secure.log"):
        assert b"VAMBRACE-CANARY" not in (server.home / log).read_bytes()
    assert b"VAMBRACE-CANARY" not in server.state.read_bytes()


def test_verdicts(user) -> None:
    """A no of a stranger or for another token changes nothing; silence until the deadline ends the Realm unexecuted."""
    realm = user.create(user.bundle(verdict_seconds=45))
    try:
        realm.verify()
        token = realm.host.token(realm.uuid)
        instance = decode_evidence(token).realm.instance
        other = os.urandom(16)
        for message in (
            user.owner.sign_verdict(other, hashlib.sha256(token).digest(), yes=True),
            user.owner.sign_verdict(instance, os.urandom(32), yes=True),
            b"yes",
        ):
            with pytest.raises(VambraceError) as refused:
                realm.host.verdict(realm.uuid, message)
            assert isinstance(refused.value, HostError | MessageRefused)
            assert realm.info().state == "awaiting-verdict"
        ended = realm.host.wait(realm.uuid, lambda info: info.final, timeout=120)
        assert (ended.state, ended.executed) == ("refused", False)
        with pytest.raises(VambraceError):
            realm.approve()
    finally:
        realm.abandon()


def test_platform_key_is_the_fuse_s(server: Server) -> None:
    """The attestation key outlives a cold restart and the loss of the state disk: it comes from the fuse alone."""
    before = server._get("/v1/platform", timeout=60)
    assert before["lifecycle"] == 0x3000
    server.down()
    server.state.unlink()
    server.up(print)
    after = server._get("/v1/platform", timeout=60)
    assert after["platform_key"] == before["platform_key"]
    assert after["lifecycle"] == 0x3000
