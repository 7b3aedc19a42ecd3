"""What keeps the emulated server from being built or started, found before anything long begins."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from refusals import Refusals, tree


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(capsys)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a server that is not there yet. What is asked of its build fails the test."""

    def build(*_: object, **__: object) -> None:
        pytest.fail("the long build was begun first")

    monkeypatch.setattr("vambrace.emulator.build.build", build)
    monkeypatch.setenv("VAMBRACE_SERVER", str(tmp_path / "data/server"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def fake_qemu(folder: Path, version: str) -> None:
    """A program of QEMU's name that can say its version only."""
    folder.mkdir()
    program = folder / "qemu-system-aarch64"
    program.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
    program.chmod(0o755)


@pytest.mark.parametrize("command", ["build", "up"])
def test_no_qemu(
    server: Path, refused: Refusals, tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    refused(6, "server", command, says="qemu-system-aarch64 is not installed", hint="run 'make packages'")
    assert not tree(own_state) and not server.exists()


@pytest.mark.parametrize("version", ["7.2.9 (Debian 1:7.2+dfsg-7)", "8.1.0", "nonsense"])
def test_a_qemu_that_is_too_old(
    server: Path, refused: Refusals, tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake_qemu(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    refused(7, "server", "up", says="qemu-system-aarch64 is older than 8.2", hint="make packages")
    assert not tree(own_state) and not server.exists()


def test_a_port_in_use(
    server: Path, refused: Refusals, tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu(tmp_path / "bin", "10.0.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        says, hint = f"port {port} is in use", "choose another with VAMBRACE_PORT"
        refused(7, "server", "up", "--port", port, says=says, hint=hint)
        monkeypatch.setenv("VAMBRACE_PORT", port)
        refused(7, "server", "up", says=says, hint=hint)
    assert not tree(own_state) and not tree(tmp_path / "data")


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "８４４３"])
def test_a_port_that_is_none(server: Path, refused: Refusals, own_state: Path, port: str) -> None:
    refused(2, "server", "up", f"--port={port}", says="is not a port from 1 to 65535", hint="server up --help")
    assert not tree(own_state) and not server.exists()
