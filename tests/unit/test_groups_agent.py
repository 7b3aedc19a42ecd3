"""Who is asked to end: the processes of a control group, and nobody who has got the number of one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from vambrace_agent import groups


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def listed(root: Path, group: str, *pids: int) -> str:
    """A group's folder below ``root`` in which ``pids`` were when it was read."""
    folder = root / group.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return str(root) + group


def test_a_process_that_has_got_a_number_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    """It is where it is when it would be asked that decides, not where somebody of this number was."""
    monkeypatch.setattr(groups, "ROOT", str(tmp_path))
    real = groups.group_of(sleeper.pid)
    groups.terminate(listed(tmp_path, "/other", sleeper.pid))
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.5)
    gone = subprocess.Popen(["true"])
    gone.wait()
    groups.terminate(listed(tmp_path, real.removeprefix(str(tmp_path)), gone.pid, sleeper.pid))
    assert sleeper.wait(20) == -signal.SIGTERM


def test_where_a_process_is(monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]) -> None:
    lines = Path(f"/proc/{sleeper.pid}/cgroup").read_text().splitlines()
    (path,) = [line[3:] for line in lines if line.startswith("0::")] or [""]
    assert groups.group_of(sleeper.pid) == groups.ROOT + path == groups.group_of(os.getpid())
    with pytest.raises(OSError):
        groups.group_of(1 << 30)
