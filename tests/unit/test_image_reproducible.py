"""Every kind of application, built by two builders that differ in folder, file system, user, umask, time zone, locale,
the age and order of files, and the date: the same measurement, and the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_factory import make_elf, make_kernel, owner
from test_image_packages import SCRIPT, make_package, small_root
from test_image_programs import make_archive
from test_image_python import guest
from test_reproducible import BUILDERS, builder
from wheels import ARM, make_wheel, pip_settings

import vambrace.debian
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.image.base import runtime_base
from vambrace.image.packages import locked_packages
from vambrace.image.python import Guest, lock_path, locked_wheels

__all__ = ["guest"]
BUILDER = Path(__file__).with_name("image_builder.py")
# Whoever runs the tests is somebody else there, whom neither programs nor Python take for root.
SOMEBODY = ["unshare", "--user", "--map-user=1234", "--map-group=1234"]
OTHERS = {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "PYTHONHASHSEED": "17", "HOME": "/nonexistent"}
MANIFESTS = {
    "static": "files: [server, data], command: [./server]",
    "python": "files: project, command: [python3, main.py], python: {requirements: requirements.txt}",
    "java": "java: shop.jar, files: [data]",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Path:
    """What both builders have: the runtime base, packages, and wheels."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(guest.tree, folder / "tree", symlinks=True)
    for name, data in (("kernel", make_kernel()), ("initrd", b"i" * 5000), ("disk", b"base" * 2048)):
        (folder / name).write_bytes(data)
    (folder / "tree/usr/bin/java").write_bytes(make_elf())
    (folder / "tree/usr/bin/java").chmod(0o755)
    (folder / "packages").mkdir()
    paths = ("usr/bin/ed", "usr/share/ca-certificates/a.crt", "usr/lib/store/z", "usr/lib/store/a")
    files = {path: f"{path}\n" for path in paths}
    for package in (*small_root(), make_package(folder / "made", "store", SCRIPT, files)):
        shutil.copyfile(package, folder / "packages" / package.name)
    (folder / "wheels").mkdir()
    make_wheel(folder / "wheels", "alpha", requires=("beta",))
    modules = {f"beta/{name}.py": f"{name} = {{'a', 'b'}}\n" for name in "zay"}
    make_wheel(folder / "wheels", "beta", tag=ARM, files=modules)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, base: Path, guest: Guest) -> Path:
    """The owner's files for every kind; the Python project with its lock, as it is kept in a repository."""
    folder = tmp_path_factory.mktemp("sources")
    for kind, program in MANIFESTS.items():
        place = folder / kind
        (place / "data/deep").mkdir(parents=True)
        (place / "project").mkdir()
        for name in ("data/b", "data/a", "data/deep/x", "project/main.py", "project/helper.py"):
            (place / name).write_text(f"# {name}\n" * 700)
        (place / "server").write_bytes(make_elf())
        (place / "server").chmod(0o755)
        make_archive(place / "shop.jar")
        (place / "owner.pem").write_text(owner()[0])
        text = f"name: shop\nowner: owner.pem\nsystem: {{memory: 96M}}\napplications:\n  - {{name: shop, {program}}}\n"
        (place / "shop.yaml").write_text(text)
        (place / "requirements.txt").write_text("alpha\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pip_settings(base / "wheels").items():
            patch.setenv(name, value)
        locked_wheels(folder / "python/requirements.txt", lock_path(folder / "python/shop.yaml", "shop"), guest)
    (folder / "packages").mkdir()
    return folder


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder of another file system, if there is one, that lists its entries in another order."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def build(kind: str, sources: Path, base: Path, place: Path, *, other: bool) -> list[str]:
    """The year and the user in which and by whom it was built, and digests."""
    place.mkdir(parents=True)
    command = [sys.executable, str(BUILDER), kind, str(sources / kind), str(base), str(place)]
    surroundings = {**os.environ, **pip_settings(base / "wheels"), "TZ": "UTC", "LC_ALL": "C"}
    mask = 0o022
    if other:
        surroundings |= OTHERS
        mask = 0o077
        command = [*SOMEBODY, "faketime", "2031-05-06 07:08:09", *command, "backwards"]
    built = subprocess.run(command, env=surroundings, umask=mask, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return built.stdout.split()


@pytest.mark.parametrize("kind", [*MANIFESTS, "packages"])
def test_the_same_measurement(kind: str, sources: Path, base: Path, tmp_path: Path, elsewhere: Path) -> None:
    first = build(kind, sources, base, tmp_path / "here", other=False)
    second = build(kind, sources, base, elsewhere / "a/longer/way", other=True)
    assert second[:2] == ["2031", "1234"] and first[0] != "2031" and first[1] == str(os.getuid())
    assert len(first) == (3 if kind == "packages" else 4)
    assert first[2:] == second[2:]


@pytest.mark.soak
def test_a_base_with_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a runtime base with a package, unpacked, compiled and packed twice."""
    kept, made = Cache(), set()
    lock = Path(vambrace.debian.__file__).with_name("packages.lock")
    packages = locked_packages(["sqlite3"], tmp_path / "shop.yaml", kept.root / "archive")
    for number in range(len(BUILDERS)):
        with builder(tmp_path, number, monkeypatch) as (place, _):
            base = runtime_base(Archive(kept.root / "archive", lock), Cache(place / "cache"), packages)
            parts = (base.kernel, base.initrd, base.disk)
            made.add((base.disk_info, *(hashlib.sha256(part.read_bytes()).hexdigest() for part in parts)))
    assert len(made) == 1
