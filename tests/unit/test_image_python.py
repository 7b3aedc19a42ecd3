"""Python projects: requirements, their lock, and the virtual environment in the image."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from wheels import ARM, INTEL, make_wheel, shelf

import vambrace.debian
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.errors import BuildError, ConfigError
from vambrace.image.base import runtime_base
from vambrace.image.python import Guest, _install, _lay_out, environment, environment_of, lock_path, locked_wheels
from vambrace.image.requirements import Wanted, guest_markers, read_requirements

__all__ = ["shelf"]
MARKERS = guest_markers("3.13")


@pytest.fixture(scope="module")
def guest() -> Guest:
    cache = Cache()
    lock = Path(vambrace.debian.__file__).with_name("packages.lock")
    return Guest.of(runtime_base(Archive(cache.root / "archive", lock), cache).tree)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text("alpha\n")
    return tmp_path


def lock(project: Path, guest: Guest, *, newer: bool = False) -> list[str]:
    """Names and versions that are locked for the project."""
    place = lock_path(project / "shop.yaml", "analysis")
    wheels = locked_wheels(project / "requirements.txt", place, guest, newer=newer)
    pinned = [line.split(" ")[0] for line in place.read_text().splitlines() if not line.startswith("#")]
    assert pinned == [f"{wheel.name}=={wheel.version}" for wheel in wheels]
    return pinned


def read(project: Path, text: str) -> list[Wanted]:
    (project / "requirements.txt").write_text(text)
    return read_requirements(project / "requirements.txt", MARKERS)


def test_requirements_are_read(project: Path) -> None:
    (project / "more.txt").write_text("delta==1 ; platform_machine == 'aarch64'\n")
    digest = "0a" * 32
    hashes = f"--hash=sha256:{digest} \\\n  --hash=sha256:{'0b' * 32}"
    text = f"# a list\nalpha[x]>=1 # why\n\nbeta==2 \\\n  {hashes}\n-r more.txt\n"
    found = read(project, text + "old; python_version < '3.13'\nwindows; sys_platform == 'win32'\n")
    assert [each.name for each in found] == ["alpha", "beta", "delta"]
    assert found[1].hashes == {digest, "0b" * 32}


@pytest.mark.parametrize(
    "line",
    [
        *("--index-url x", "-e .", "./here", "a @ https://example.org/a.whl"),
        *("a==", "git+ssh://x", "-c file", "a --hash=md5:0"),
    ],
)
def test_other_lines_are_refused_with_their_place(project: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"requirements\.txt, line 2: "):
        read(project, f"alpha\n{line}\n")


def test_files_that_include_each_other(project: Path) -> None:
    (project / "more.txt").write_text("-r requirements.txt\n")
    with pytest.raises(ConfigError, match="includes itself"):
        read(project, "-r more.txt\n")
    with pytest.raises(ConfigError, match="No such file"):
        read(project, "-r none.txt\n")


def test_the_guest_s_markers_decide(project: Path, shelf: Path, guest: Guest) -> None:
    """Not those of the machine that builds: by its own pip would take ``intel`` and leave ``arm`` and ``deep`` out."""
    requires = ("arm; platform_machine=='aarch64'", "intel; platform_machine!='aarch64'", "extra; extra=='more'")
    make_wheel(shelf, "alpha", requires=requires)
    make_wheel(shelf, "arm", tag=ARM, requires=("deep>=2; python_version=='3.13'",))
    for name in ("intel", "extra"):
        make_wheel(shelf, name)
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(shelf, "deep", version)
    assert lock(project, guest) == ["alpha==1.0", "arm==1.0", "deep==3.0"]
    (project / "requirements.txt").write_text("alpha[more]\ndeep<3\n")
    assert lock(project, guest) == ["alpha==1.0", "arm==1.0", "deep==2.0", "extra==1.0"]


def test_the_lock_holds_until_it_is_renewed(project: Path, shelf: Path, guest: Guest) -> None:
    make_wheel(shelf, "alpha")
    assert lock(project, guest) == ["alpha==1.0"]
    make_wheel(shelf, "alpha", "2.0")
    assert lock(project, guest) == ["alpha==1.0"]
    (project / "requirements.txt").write_text("# a comment is no change\nalpha\n")
    assert lock(project, guest) == ["alpha==1.0"]
    assert lock(project, guest, newer=True) == ["alpha==2.0"]
    (project / "requirements.txt").write_text("alpha<2\n")
    assert lock(project, guest) == ["alpha==1.0"]


def test_a_link_in_the_lock_s_way_is_not_followed(project: Path, shelf: Path, guest: Guest) -> None:
    make_wheel(shelf, "alpha")
    (project / "mine").write_text("mine\n")
    place = lock_path(project / "shop.yaml", "analysis")
    place.with_name(place.name + ".tmp").symlink_to(project / "mine")
    assert lock(project, guest) == ["alpha==1.0"]
    assert (project / "mine").read_text() == "mine\n" and not place.is_symlink()


def test_no_wheel_for_arm64(project: Path, shelf: Path, guest: Guest) -> None:
    make_wheel(shelf, "alpha", tag=INTEL)
    with pytest.raises(ConfigError, match="no wheel of alpha.* for arm64") as caught:
        lock(project, guest)
    assert "python3-alpha" in str(caught.value.hint)


def test_requirements_that_conflict(project: Path, shelf: Path, guest: Guest) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(shelf, "beta", version)
    make_wheel(shelf, "alpha", requires=("beta<2",))
    (project / "requirements.txt").write_text("alpha\nbeta>=2\n")
    with pytest.raises(ConfigError, match="Cannot install|conflict"):
        lock(project, guest)


def test_hashes_of_the_project_bind(project: Path, shelf: Path, guest: Guest) -> None:
    make_wheel(shelf, "alpha")
    (project / "requirements.txt").write_text(f"alpha==1.0 --hash=sha256:{'00' * 32}\n")
    with pytest.raises(ConfigError, match="none of the hashes"):
        lock(project, guest)


@pytest.mark.parametrize("text", ["alpha\n", "alpha==1 --hash=sha256:00\n", "-r /etc/passwd\n", "\xff"])
def test_a_broken_lock(project: Path, guest: Guest, text: str) -> None:
    lock_path(project / "shop.yaml", "analysis").write_bytes(text.encode("latin-1"))
    with pytest.raises(BuildError, match="lock"):
        lock(project, guest)


def test_the_environment(project: Path, shelf: Path, guest: Guest) -> None:
    """Wheels alone are unpacked and compiled, for the place in the image; the guest's Python runs what is there."""
    make_wheel(shelf, "alpha", requires=("beta",))
    files = {"beta/__init__.py": "VALUE = 7\n", "beta/broken.py": "print 1\n"}
    files["beta-1.0.data/scripts/tool"] = "#!python\n"
    make_wheel(shelf, "beta", tag=ARM, files=files)
    lock(project, guest)
    wheels = locked_wheels(project / "requirements.txt", lock_path(project / "shop.yaml", "analysis"), guest)
    cache = Cache(project / "cache")
    tree = environment(wheels, "analysis", guest, cache)
    assert (tree / "bin/run-alpha").read_text().startswith("#!/app/analysis/.venv/bin/python3\n")
    assert (tree / "bin/tool").read_text().startswith("#!/app/analysis/.venv/bin/python3\n")
    assert (tree / "bin/python3").readlink() == Path("/usr/bin/python3")
    assert environment_of("analysis")["PATH"].startswith("/app/analysis/.venv/bin:")
    packages = tree / "lib/python3.13/site-packages"
    assert list(packages.glob("__pycache__/alpha.*.pyc")) and not list(packages.glob("beta/__pycache__/broken*"))
    assert str(project).encode() not in b"".join(path.read_bytes() for path in packages.rglob("*") if path.is_file())
    command = ["qemu-aarch64-static", "-L", guest.tree, guest.tree / "usr/bin/python3.13", "-S", "-c"]
    surroundings = {**os.environ, "PYTHONHOME": str(guest.tree / "usr"), "PYTHONPATH": str(packages)}
    program = "import alpha, beta; alpha.main(); print(beta.VALUE)"
    ran = subprocess.run([*command, program], env=surroundings, capture_output=True, text=True, check=True)
    assert ran.stdout == "alpha 1.0\n7\n"
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert environment(wheels, "analysis", guest, cache) == tree


def test_a_wheel_that_was_changed(project: Path, shelf: Path, guest: Guest) -> None:
    make_wheel(shelf, "alpha")
    lock(project, guest)
    wheels = locked_wheels(project / "requirements.txt", lock_path(project / "shop.yaml", "analysis"), guest)
    make_wheel(shelf, "alpha", files={"alpha.py": "import os\n"})
    with pytest.raises(BuildError, match="recorded hash"):
        environment(wheels, "analysis", guest, Cache(project / "cache"))


@pytest.mark.parametrize("path", ["../escape.py", "/tmp/escape.py", "alpha-1.0.data/scripts/../../../escape"])
def test_a_wheel_that_leads_out(project: Path, shelf: Path, guest: Guest, path: str) -> None:
    make_wheel(shelf, "alpha", files={path: "x = 1\n"})
    lock(project, guest)
    wheels = locked_wheels(project / "requirements.txt", lock_path(project / "shop.yaml", "analysis"), guest)
    with pytest.raises(ConfigError, match="no good wheel"):
        environment(wheels, "analysis", guest, Cache(project / "cache"))
    assert not list(project.rglob("escape*")) and not Path("/tmp/escape.py").exists()


def test_wheels_that_are_damaged_or_bombs(tmp_path: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has an index, and its hashes, sends what he likes."""
    wheel = make_wheel(tmp_path, "alpha", files={"alpha.py": "x = 1\n" * 1000})
    with zipfile.ZipFile(wheel) as stored:
        contents = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name, content in contents.items():
            deflated.writestr(name, content)
    good = wheel.read_bytes()

    def unpack() -> None:
        shutil.rmtree(tmp_path / "tree", ignore_errors=True)
        _lay_out(tmp_path / "tree", guest)
        _install(wheel, tmp_path / "tree", "/app/a/.venv", guest)

    unpack()
    for place in (30 + len("alpha.py"), len(good) - 100):
        wheel.write_bytes(good[:place] + b"\xff" * 12 + good[place + 12 :])
        with pytest.raises(ConfigError, match="no good wheel"):
            unpack()
    wheel.write_bytes(good)
    monkeypatch.setattr("vambrace.image.zips.MAX_UNPACKED", 6000)
    with pytest.raises(ConfigError, match="unpacks to too much"):
        unpack()


def test_nothing_of_a_wheel_s_requirements_is_built(project: Path, shelf: Path, guest: Guest) -> None:
    """--only-binary is for an index; what is required by a URL pip would build, with the stranger's own backend."""
    evil = project / "evil"
    evil.mkdir()
    (evil / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (evil / "backend.py").write_text(f"open({str(project / 'ran')!r}, 'w')\n")
    make_wheel(shelf, "alpha", requires=(f"evil @ file://{evil}",))
    with pytest.raises(ConfigError, match="have to be built"):
        lock(project, guest)
    assert not (project / "ran").exists()


def test_nothing_of_the_present_folder_runs(
    project: Path, shelf: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(shelf, "alpha")
    for name in ("pip.py", "compileall.py", "py_compile.py"):
        (project / name).write_text(f"open({str(project / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(project)
    assert lock(project, guest) == ["alpha==1.0"]
    wheels = locked_wheels(project / "requirements.txt", lock_path(project / "shop.yaml", "analysis"), guest)
    assert list(environment(wheels, "analysis", guest, Cache(project / "cache")).rglob("alpha.cpython-313.pyc"))
    assert not (project / "ran").exists()
