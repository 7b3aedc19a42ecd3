"""The whole demo in the SM suite, as ``make demo SUITE=sm`` runs it, on a machine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import Machine

from vambrace.suite import SM

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_the_whole_demo_in_the_sm_suite(machine: Machine, tmp_path: Path) -> None:
    machine.stop()
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "examples.patients.demo", "--suite", SM.name]
    command += ["--work", str(tmp_path / "work"), "--report", str(report)]
    environment = {**os.environ, "VAMBRACE_SERVER": str(tmp_path / "server")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    told = json.loads(report.read_text())
    assert told["passed"] and told["measurement"]["token"] == told["measurement"]["expected"]
    # The verified token's JSON is among what was told.
    assert '"hash-algorithm": "sm3"' in done.stdout
