"""Commands whose libraries are an extra of the package, where these are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from config_factory import owner

from vambrace.broker import setup
from vambrace.broker.platforms import PlatformFiles

#: A Python without the library runs the command line.
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from vambrace.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("library", "extra", "command"),
    [
        ("aiohttp", "broker", ["broker", "serve"]),
        ("sqlalchemy", "broker", ["broker", "audit"]),
        ("aiohttp", "verifier", ["verifier", "serve"]),
    ],
)
def test_it_comes_from_a_checkout(tmp_path: Path, library: str, extra: str, command: list[str]) -> None:
    """No index has vambrace: who asks one for that name gets whatever somebody has put there."""
    platforms = {"default": PlatformFiles(tmp_path / "root.pem", None)}
    repositories = {"patients": owner()[0].encode()}
    setup.create(tmp_path / "broker", names=["localhost"], platforms=platforms, repositories=repositories)
    words = [sys.executable, "-c", WITHOUT, library, *command, str(tmp_path / "broker")]
    ran = subprocess.run(words, capture_output=True, text=True)
    says = f"error: {library} is not installed\nhint: in a checkout of vambrace: pip install '.[{extra}]'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", says)
