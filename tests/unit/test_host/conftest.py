from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from vambrace.host import shares
from vambrace.partition import processors
from vambrace.partition.cgroups import Cgroups

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "fakes")]

import fake_cgroups  # noqa: E402
from harness_certificates import Certificates  # noqa: E402


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroups:
    """A directory in place of the kernel's groups; what is done to interrupts is left out."""
    cgroups = fake_cgroups.make(tmp_path / "cgroups")
    monkeypatch.setattr(shares, "Cgroups", partial(Cgroups, remove=fake_cgroups.remove))
    monkeypatch.setattr(processors, "steer_interrupts", lambda cpus: [])
    return cgroups
