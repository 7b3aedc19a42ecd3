"""The main job and its refusals on the real stack: TF-A, OP-TEE, Linux/KVM at EL2, our VMM, a Realm."""

from __future__ import annotations

from pathlib import Path

from machine import holds, play

from vambrace.emulator.server import Server


def test_demo(product: Server, tmp_path: Path) -> None:
    """The demo shows all that it claims: same measurement, bounded plaintext, results, nothing left, no for a fake."""
    figures, _ = play("examples.patients.demo", server=product.home, folder=tmp_path)
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
    for file in (product.home / "console.log", product.home / "secure.log", product.state):
        assert not holds(file, b"VAMBRACE-CANARY")
