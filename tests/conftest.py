"""What holds for every test."""

from __future__ import annotations

import fcntl
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vambrace.errors import PagerError
from vambrace.pager import Window

# Machines are shared and slow at times: how long an example takes says nothing about it.
settings.register_profile("tests", deadline=None)
# With --soak: as many examples as a night allows, in every property test that does not say how many it wants.
settings.register_profile("soak", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests marked soak too, and many more examples")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("soak" if config.getoption("--soak") else "tests")
    # What a script starts in the background is made to ignore it, and all that it starts; some tests interrupt those.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests are asked for by name, whatever ``-m`` says."""
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes long: --soak runs it"))


@pytest.fixture(scope="session")
def kernel() -> None:
    """Skips where this machine's kernel cannot move pages (before Linux 6.8) or gives no userfaultfd."""
    try:
        Window([(1, 0)], bytes(32), bytes(16)).close()
    except PagerError as error:
        pytest.skip(f"{error}; {error.hint}")


@pytest.fixture
def still() -> Iterator[None]:
    """The kernel moves no locked pages meanwhile: page frames are looked at. The setting is the machine's, so one test
    after the other changes it, and puts it back."""
    setting = Path("/proc/sys/vm/compact_unevictable_allowed")
    with (Path(tempfile.gettempdir()) / "vambrace-still.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = setting.read_text() if setting.exists() else ""
        try:
            if before:
                setting.write_text("0")
            yield
        finally:
            if before:
                setting.write_text(before)


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own: no test sees or changes the user's hosts, keys and Realms."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("VAMBRACE_HOME", str(home))
    monkeypatch.delenv("VAMBRACE_HOST", raising=False)
    return home
