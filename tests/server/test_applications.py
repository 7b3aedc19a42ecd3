"""Programs of several kinds in one Realm: a Python project with a wheel of its requirements, and a static binary."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from user import PROGRAMS, User


def test_a_wheel_and_a_static_binary(user: User, tmp_path: Path) -> None:
    binary = tmp_path / "native"
    subprocess.run(["aarch64-linux-gnu-gcc", "-O2", "-static", "-o", binary, PROGRAMS / "native.c"], check=True)
    bundle = user.bundle(
        {
            "name": "wheel",
            "python": {"requirements": str(PROGRAMS / "wheel/requirements.txt")},
            "results": ["report.json"],
        },
        {
            "name": "native",
            "files": [str(binary)],
            "command": ["./native", "/results/native/sum.txt"],
            "memory": "16M",
            "results": ["sum.txt"],
        },
    )
    with user.create(bundle) as realm:
        realm.verify()
        realm.approve()
        realm.start()
        realm.finish(tmp_path / "results")
    report = json.loads((tmp_path / "results/wheel/report.json").read_text())
    packages = "/app/wheel/.venv/lib/python3.13/site-packages/markupsafe"
    assert report["escaped"] == "&lt;a &amp; b&gt;"
    assert report["compiled"] == f"{packages}/_speedups.cpython-313-aarch64-linux-gnu.so"
    assert report["cached"] == f"{packages}/__pycache__/__init__.cpython-313.pyc"
    assert (report["prefix"], report["machine"]) == ("/app/wheel/.venv", "aarch64")
    assert (tmp_path / "results/native/sum.txt").read_text() == f"aarch64 {sum(n * n for n in range(1001))}\n"
