"""Wheels made for a test, and pip's settings that find them and nothing else."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ANY, ARM, INTEL = "py3-none-any", "cp313-cp313-manylinux_2_28_aarch64", "cp313-cp313-manylinux_2_28_x86_64"


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = ANY,
    requires: tuple[str, ...] = (),
    files: Mapping[str, str] | None = None,
) -> Path:
    """A wheel with one module, or with ``files``, and a script that calls the module's ``main``."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = dict(files) if files is not None else {f"{name}.py": f"def main():\n    print('{name} {version}')\n"}
    contents[f"{info}/METADATA"] = metadata + "".join(f"Requires-Dist: {each}\n" for each in requires)
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    contents[f"{info}/entry_points.txt"] = f"[console_scripts]\nrun-{name} = {name}:main\n"
    record = ""
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    contents[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return wheel


def pip_settings(folder: Path) -> dict[str, str]:
    """Environment variables that make ``folder`` pip's only source."""
    return {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1"}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip finds wheels."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name, value in pip_settings(folder).items():
        monkeypatch.setenv(name, value)
    return folder
