"""The saved state of the emulated server: whole or not there, and for one machine only."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from vambrace.emulator import qemu
from vambrace.emulator.saved import SavedState, copy_sparse, fingerprint
from vambrace.errors import ServerError


class FakeMonitor:
    """What the emulator's monitor answers while a state is saved; ``status`` is the migration's."""

    def __init__(self, status: str = "completed") -> None:
        self.status = status
        self.said: list[str] = []

    def execute(self, command: str, **arguments: object) -> object:
        self.said.append(command)
        if command == "migrate":
            assert self.said[:1] == ["stop"] and "cont" not in self.said
            uri = arguments["uri"]
            assert isinstance(uri, str)
            Path(uri.removeprefix("file:")).write_bytes(b"devices")
        return {"status": self.status, "error-desc": "a test"} if command == "query-migrate" else {}


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The machine's memory: something, a hole, something, a hole at the end."""
    content = os.urandom(100_000) + bytes(1 << 20) + os.urandom(5) + bytes(300_000)
    (tmp_path / "memfd").write_bytes(content)
    monkeypatch.setattr(qemu, "memory_of", lambda pid: tmp_path / "memfd")
    return content


def test_a_state_is_saved_whole(tmp_path: Path, memory: bytes) -> None:
    state = SavedState(tmp_path / "saved", "f")
    assert not state.ready()
    monitor = FakeMonitor()
    state.save(1, monitor)  # type: ignore[arg-type]
    assert state.ready()
    # The machine stands still while it is read, and goes on afterwards.
    assert monitor.said[0] == "stop" and monitor.said[-1] == "cont"
    saved = state.saved()
    assert saved.ram.read_bytes() == memory
    assert saved.devices.read_bytes() == b"devices"
    assert [oct(path.stat().st_mode & 0o777) for path in (saved.ram, saved.devices)] == ["0o600", "0o600"]


def test_a_state_of_another_machine_is_not_ready(tmp_path: Path, memory: bytes) -> None:
    SavedState(tmp_path / "saved", "one").save(1, FakeMonitor())  # type: ignore[arg-type]
    assert not SavedState(tmp_path / "saved", "other").ready()


def test_what_fails_leaves_no_state(tmp_path: Path, memory: bytes) -> None:
    state = SavedState(tmp_path / "saved", "f")
    monitor = FakeMonitor("failed")
    with pytest.raises(ServerError, match="a test"):
        state.save(1, monitor)  # type: ignore[arg-type]
    assert not state.ready()
    assert monitor.said[-1] == "cont"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memfd"]


def test_zeros_become_holes(tmp_path: Path) -> None:
    content = os.urandom(4096) + bytes(64 << 20)
    copy_sparse(io.BytesIO(content), tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == len(content)
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "copy").read_bytes() == content


def test_fingerprint_covers_words_and_contents(tmp_path: Path) -> None:
    flash = tmp_path / "flash"
    flash.write_bytes(b"fuse")
    first = fingerprint(["a", "bc"], [flash])
    assert fingerprint(["a", "bc"], [flash]) == first
    assert fingerprint(["ab", "c"], [flash]) != first
    flash.write_bytes(b"fusf")
    assert fingerprint(["a", "bc"], [flash]) != first
