"""``vambrace broker`` and ``vambrace secret``: from an empty folder to a secret that a Realm gets, and its log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_world import MEASUREMENT, PERSONALIZATION, SECRET, VOLUME, World
from client_harness import make_bundle

from vambrace.cli.main import main
from vambrace.client.context import Context, HostEntry

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Iterator[World]:
    """A world whose broker was made by the command, for the owner of the world."""
    world = World(tmp_path)
    monkeypatch.setenv("VAMBRACE_HOME", str(tmp_path))  # where the world's owner is
    entry = HostEntry("https://localhost:1", "c", "k", "a", str(world.root), str(world.references))
    Context().add_host("vendor", entry)
    world.home = tmp_path / "made"
    assert main(["broker", "init", str(world.home), "--repository", "patients", "--name", "10.0.2.100"]) == 0
    world.home = world.home.rename(tmp_path / "broker-of-the-command")
    settings = world.home / "broker.toml"
    settings.write_text(settings.read_text().replace("port = 8444", "port = 0"))
    capsys.readouterr()
    with world.running():
        yield world


def secret(world: World, capsys: Capture, *words: str, code: int = 0) -> str:
    """What ``vambrace secret`` says."""
    broker = ["--broker", f"https://localhost:{world.port}", "--certificate", str(world.home / "certificate.pem")]
    assert main(["secret", *words, *broker]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_from_nothing_to_the_log(world: World, capsys: Capture, tmp_path: Path) -> None:
    policy, value = tmp_path / "policy.toml", tmp_path / "value"
    lines = ['schema = "vambrace.policy/1"', "[realm]", f'measurements = ["{MEASUREMENT.hex()}"]',
             f'owners = ["{PERSONALIZATION.hex()}"]']  # fmt: skip
    policy.write_text("\n".join(lines))
    value.write_bytes(b"hunter2")
    assert "generation 1" in secret(world, capsys, "put", SECRET, "--value", str(value), "--policy", str(policy))
    assert "generation 0" in secret(world, capsys, "put", VOLUME, "--policy", str(policy))
    with world.realm().session() as session:
        assert session.resource(SECRET) == (1, b"hunter2")
    listed = secret(world, capsys, "list", "patients")
    assert SECRET in listed and VOLUME in listed and "hunter2" not in listed
    shown = json.loads(secret(world, capsys, "show", SECRET, "--json"))
    assert shown["policy"]["realm"]["measurements"] == [MEASUREMENT.hex()] and "hunter2" not in json.dumps(shown)
    log = secret(world, capsys, "log", "patients")
    assert "granted" in log and "hunter2" not in log
    secret(world, capsys, "delete", VOLUME)
    assert "error: " in secret(world, capsys, "show", VOLUME, code=5)
    world.stop()
    try:
        assert main(["broker", "audit", str(world.home)]) == 0
        audit = capsys.readouterr().out
        assert "attest" in audit and audit.splitlines()[-1].startswith("whole: ") and "hunter2" not in audit
    finally:
        world.start()


def test_what_makes_no_sense(world: World, capsys: Capture, tmp_path: Path) -> None:
    value = tmp_path / "value"
    value.write_bytes(b"x")
    for words, code, says in (
        (["put", SECRET], 2, "nothing to change"),
        (["put", SECRET, "--value", str(value)], 5, "there is no"),
        (["put", SECRET, "--value", str(tmp_path / "missing")], 2, "cannot be read"),
        (["put", SECRET, "--policy", str(value)], 3, "policy"),
        (["put", SECRET, "--policy", str(value), "--add"], 2, "--policy stands for"),
        (["list", "others"], 10, "not the repository of who asks"),
        (["show", "a/b"], 2, "no resource"),
    ):
        assert says in secret(world, capsys, *words, code=code), words
    assert main(["broker", "init", str(world.home), "--repository", "patients"]) == 3
    assert "never overwritten" in capsys.readouterr().err
    assert main(["broker", "serve", str(tmp_path / "nowhere")]) == 3
    assert "broker init" in capsys.readouterr().err


def test_images_of_two_suites(world: World, capsys: Capture, tmp_path: Path) -> None:
    """A policy has one hash: with another one the images that have the secret already would lose it, unsaid."""
    value, bundle = tmp_path / "value", tmp_path / "patients.vambrace"
    value.write_bytes(b"x")
    make_bundle(tmp_path, world.owner)
    with world.client() as client:
        client.put(SECRET, b"x", world.policy(hash="sm3"))
    said = secret(world, capsys, "put", SECRET, "--bundle", str(bundle), "--add", code=2)
    assert "sha-256" in said and "sm3" in said
    with world.client() as client:
        assert client.describe(SECRET)["policy"]["realm"]["measurements"] == [MEASUREMENT.hex()]
    secret(world, capsys, "put", SECRET, "--bundle", str(bundle))
    secret(world, capsys, "put", SECRET, "--bundle", str(bundle), "--add")


def test_no_broker_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("VAMBRACE_HOME", str(tmp_path))
    assert main(["secret", "list", "patients"]) == 2
    assert "no broker is known" in capsys.readouterr().err
