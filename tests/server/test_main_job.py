"""The main job and its refusals on the real stack: TF-A, OP-TEE, Linux/KVM at EL2, our VMM, a Realm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from machine import holds

from vambrace.emulator.server import Server

ROOT = Path(__file__).parent.parent.parent


def test_demo(product: Server, tmp_path: Path) -> None:
    """The demo shows all that it claims: same measurement, bounded plaintext, results, nothing left, no for a fake."""
    report = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, "-m", "examples.patients.demo", "--work", str(tmp_path / "work"), "--report", str(report)],
        cwd=ROOT,
        env={**os.environ, "VAMBRACE_SERVER": str(product.home)},
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
    for file in (product.home / "console.log", product.home / "secure.log", product.state):
        assert not holds(file, b"VAMBRACE-CANARY")
