"""Inside a running Realm: several processors and applications, and a program that tries to be more than one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from user import Pair, await_applications


@pytest.fixture(scope="module")
def results(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first Realm's applications have written, once those that end have ended."""
    folder = tmp_path_factory.mktemp("results")
    await_applications(pair.realms[0], ("succeeded", "running", "succeeded"))
    pair.realms[0].download(folder)
    return folder


def test_processors_and_applications(pair: Pair, results: Path) -> None:
    """All processors that the image asks for are there, and each of the applications ran beside the others."""
    for realm in pair.realms:
        states = await_applications(realm, ("succeeded", "running", "succeeded"))
        assert [(state["name"], state["exit_code"], state["restarts"]) for state in states] == [
            ("intruder", 0, 0),
            ("holder", None, 0),
            ("worker", 0, 0),
        ]
    worker = json.loads((results / "worker/processors.json").read_text())
    assert (worker["given"], worker["ran"]) == ([0, 1], [0, 1])
    # By the clock that its owner has set.
    assert pair.realms[0].state.created < worker["time"] < time.time()


def test_nobody_but_the_agent(pair: Pair, results: Path) -> None:
    """A program that is not the agent reaches neither the monitor nor the host, the agent, a disk or a privilege."""
    attempts = json.loads((results / "intruder/attempts.json").read_text())
    succeeded = {name: attempt["detail"] for name, attempt in attempts.items() if not attempt["refused"]}
    controls = {name for name in attempts if name.startswith("control: ")}
    assert len(controls) == 7
    assert set(succeeded) == controls, succeeded
    # What it tried to open was there.
    refusals = {name: attempt["detail"] for name, attempt in attempts.items()}
    for device in ("vport0p1", "hvc0", "vda", "vdb", "mem"):
        for way in ("read", "write"):
            assert "Permission denied" in refusals[f"{way} /dev/{device}"]
    assert "Operation not permitted" in refusals["vsock to the host, port 4050"]
    assert "Permission denied" in refusals["list /run/vambrace"]
    assert "may not extend register 1" in refusals["extend register 1"]
    # And nothing came of it: percentages are as the image says.
    assert [zone["percent"] for zone in pair.realms[0].stats()] == [50, 50, 50, 50]
