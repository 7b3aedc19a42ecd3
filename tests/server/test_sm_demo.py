"""The whole demo in the SM suite, as ``make demo SUITE=sm`` runs it, on a machine of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine import Machine, play

from vambrace.suite import SM


@pytest.mark.soak
def test_the_whole_demo_in_the_sm_suite(machine: Machine, tmp_path: Path) -> None:
    machine.stop()
    told, said = play("examples.patients.demo", "--suite", SM.name, server=tmp_path / "server", folder=tmp_path)
    assert told["passed"] and told["measurement"]["token"] == told["measurement"]["expected"]
    # The verified token's JSON is among what was told.
    assert '"hash-algorithm": "sm3"' in said
