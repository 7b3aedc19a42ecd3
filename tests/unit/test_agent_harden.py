"""What the agent takes from its guest's kernel before anything else runs there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vambrace_agent import AgentError, system


class Kernel:
    """A folder in place of /proc/sys. What is ``stuck`` takes no other value, as where a setting is one-way."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.stuck: set[str] = set()
        self.absent: set[int] = set()
        for name in system.SETTINGS:
            self.set(name, "-1")

        def guarded(path: str, text: str) -> None:
            if path.removeprefix(f"{root}/") in self.stuck:
                raise PermissionError(1, "Operation not permitted")
            os.truncate(path, 0)
            Path(path).write_text(text + "\n")

        monkeypatch.setattr(system, "put", guarded)
        monkeypatch.setattr(system, "lacks", lambda number, arguments: number in self.absent)

    def set(self, name: str, value: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")

    def refuse(self, name: str, value: str) -> None:
        self.set(name, value)
        self.stuck.add(name)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path / "sys", monkeypatch)


def test_harden(kernel: Kernel) -> None:
    """Every setting has its value, and one that is stricter already may stay."""
    kernel.refuse("kernel/yama/ptrace_scope", "3")
    system.harden(str(kernel.root))
    for name, (_, wanted) in system.SETTINGS.items():
        if name not in kernel.stuck:
            assert (kernel.root / name).read_text().strip() == wanted


@pytest.mark.parametrize("name", system.SETTINGS)
def test_a_setting_that_stays_lax_ends_the_realm(kernel: Kernel, name: str) -> None:
    for lax in ("-1", "", "one"):
        kernel.refuse(name, lax)
        with pytest.raises(AgentError, match=name):
            system.harden(str(kernel.root))


@pytest.mark.parametrize("name", system.SETTINGS)
def test_a_setting_that_is_not_there(kernel: Kernel, name: str) -> None:
    """It may be missing only with what it would close: /proc/sys may be not what it should be."""
    (kernel.root / name).unlink()
    with pytest.raises(AgentError, match=name):
        system.harden(str(kernel.root))
    if name in system.FEATURES:
        kernel.absent = {system.FEATURES[name][0]}
        system.harden(str(kernel.root))


def test_absent_system_calls() -> None:
    assert system.lacks(5000, (0,))
    assert not system.lacks(39 if os.uname().machine == "x86_64" else 172, ())


def test_devices_of_root_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "vport0p1"
    device.write_bytes(b"")
    device.chmod(0o666)
    system.restrict(str(device))
    assert device.stat().st_mode & 0o777 == 0o600
    device.chmod(0o666)
    monkeypatch.setattr(system.os, "chmod", lambda path, mode: None)
    with pytest.raises(AgentError, match="open to others"):
        system.restrict(str(device))
    with pytest.raises(AgentError, match="cannot be restricted"):
        system.restrict(str(tmp_path / "none"))
