"""The gallery on the product's own host, example by example, as its one command runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.gallery.visit import exhibit_of, known  # noqa: E402
from vambrace.emulator.server import Server  # noqa: E402


@pytest.mark.soak
@pytest.mark.parametrize("name", known())
def test_an_example(product: Server, tmp_path: Path, name: str) -> None:
    """It serves a client of its own kind at every percentage, ends in order, and leaves nothing."""
    report = tmp_path / "gallery.json"
    words = ["-m", "examples.gallery", name, "--work", str(tmp_path / "work"), "--report", str(report)]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "VAMBRACE_SERVER": str(product.home)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (row,) = json.loads(report.read_text())["rows"]
    assert (row["example"], row["errors"], row["error"]) == (name, 0, None)
    highest, lowest = exhibit_of(name).percentages
    assert row["percentages"] == [50, highest, lowest]
    assert row["end"].endswith("succeeded") and row["client"]
    assert min(row["build"], row["size"], row["launch"], row["ready"]) > 0
    assert product.api.get("/v1/images")["images"] == []
