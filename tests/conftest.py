"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own: no test sees or changes the user's hosts, keys and Realms."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("VAMBRACE_HOME", str(home))
    monkeypatch.delenv("VAMBRACE_HOST", raising=False)
    return home
