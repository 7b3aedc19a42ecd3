"""What is refused before the cross compiler is called; `server build` does the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vambrace.emulator.crossbuild import cross_build
from vambrace.errors import BuildError


def test_an_empty_sysroot_is_refused(tmp_path: Path) -> None:
    core = Path(__file__).parents[2] / "core"
    with pytest.raises(BuildError) as raised:
        cross_build(core, tmp_path, tmp_path / "out")
    assert raised.value.hint is not None and "libssl-dev" in raised.value.hint
    assert not (tmp_path / "out").exists()
