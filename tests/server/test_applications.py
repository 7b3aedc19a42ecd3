"""Programs of several kinds in one Realm: a Python project with a wheel of its requirements, and a static binary."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from java_archive import make_archive
from user import PROGRAMS, User

from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.emulator.build import LOCK_FILE
from vambrace.image.build import build_bundle, read_attested_manifest
from vambrace.image.prepare import manifest_base

MANIFEST = """\
name: shop
owner: owner.pem
applications:
  - name: shop
    java: {archive: shop.jar, arguments: [/results/shop/architecture.txt]}
    memory: 128M
    results: [architecture.txt]
  - name: store
    files: store
    command: [./start]
    memory: 64M
    packages: [sqlite3]
    results: [sum.txt, name.txt]
"""
START = """\
#!/bin/sh
set -eu
sqlite3 /results/store/store.db 'create table t(x); insert into t values (40), (2);'
sqlite3 /results/store/store.db 'select sum(x) from t;' > /results/store/sum.txt
id -un > /results/store/name.txt
"""


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


@pytest.mark.soak
def test_a_java_archive_and_a_package_of_debian_s(user: User, tmp_path: Path) -> None:
    """On a base of their own, of hundreds of megabytes: it is built, sent and started, which takes long."""
    make_archive(tmp_path / "shop.jar")
    (tmp_path / "owner.pem").write_text(user.owner.certificate_pem)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/start").write_text(START)
    (tmp_path / "store/start").chmod(0o755)
    (tmp_path / "shop.yaml").write_text(MANIFEST)
    manifest, cache = read_attested_manifest(tmp_path / "shop.yaml"), Cache()
    base = manifest_base(manifest, Archive(cache.root / "archive", LOCK_FILE), cache)
    build_bundle(manifest, tmp_path / "shop.vambrace", base)
    with user.create(tmp_path / "shop.vambrace") as realm:
        realm.verify()
        realm.approve()
        realm.start()
        realm.finish(tmp_path / "results")
    found = {path.name: path.read_text() for path in (tmp_path / "results").rglob("*.txt")}
    assert found == {"architecture.txt": "aarch64", "sum.txt": "42\n", "name.txt": "application-2\n"}
