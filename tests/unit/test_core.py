"""The C core under the sanitizers: every program in core/tests, with ASan and UBSan, and with TSan."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from fuzzing import SECONDS

CORE = Path(__file__).parents[2] / "core"
SOURCES = sorted(CORE.glob("*.c"))
#: Programs that make windows, which this machine's kernel may not be able to.
WINDOWS = (
    *("test_engine", "test_provider", "test_window", "test_memory", "test_tamper", "test_threads", "test_refused"),
    "test_place",
)
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer", "-pthread"]


@pytest.fixture(scope="session", params=["address,undefined", "thread"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The core's object files, built with one set of sanitizers."""
    compiler = shutil.which("cc")
    assert compiler, "cc is missing: run 'make packages'"
    directory = tmp_path_factory.mktemp("core")
    command = [compiler, *FLAGS, f"-fsanitize={request.param}", "-c", *map(str, SOURCES)]
    subprocess.run(command, cwd=directory, check=True)
    return request.param, [str(path) for path in sorted(directory.glob("*.o"))]


def run(name: str, objects: tuple[str, list[str]], directory: Path, *words: str, seconds: float = 120) -> None:
    sanitizer, files = objects
    program = directory / name
    source = CORE / "tests" / f"{name}.c"
    command = ["cc", *FLAGS, f"-fsanitize={sanitizer}", "-o", program, source, *files, "-lcrypto"]
    subprocess.run(command, check=True)
    # Older ThreadSanitizers cannot cope with much address space randomization.
    result = subprocess.run(
        ["setarch", platform.machine(), "-R", program, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_cipher(objects: tuple[str, list[str]], tmp_path: Path) -> None:
    run("test_cipher", objects, tmp_path)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", WINDOWS)
def test_window(name: str, objects: tuple[str, list[str]], tmp_path: Path) -> None:
    run(name, objects, tmp_path)


@pytest.mark.usefixtures("kernel")
def test_random_windows(objects: tuple[str, list[str]], tmp_path: Path) -> None:
    """A moment of what ``test_soak_the_window`` does for long, the same each time."""
    run("soak_window", objects, tmp_path, "1", "7")


@pytest.mark.soak
@pytest.mark.usefixtures("kernel")
def test_soak_the_window(objects: tuple[str, list[str]], tmp_path: Path) -> None:
    run("soak_window", objects, tmp_path, str(SECONDS), seconds=10 * SECONDS + 120)


def test_every_program_is_run() -> None:
    found = {path.stem for path in (CORE / "tests").glob("*.c")}
    assert found == {"soak_window", "test_cipher", *WINDOWS}
