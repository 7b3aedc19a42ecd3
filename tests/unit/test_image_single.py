"""One program without a manifest: ``image build --app``."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_factory import make_elf, owner
from test_image_programs import make_archive

from vambrace.cli.main import main
from vambrace.errors import ConfigError
from vambrace.image.manifest import Manifest, read_manifest
from vambrace.image.single import Files, Single, manifest_file, name_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "project").mkdir()
    (tmp_path / "project/main.py").write_text("print(1)\n")
    (tmp_path / "requirements.txt").write_text("numpy\n")
    (tmp_path / "server").write_bytes(make_elf())
    make_archive(tmp_path / "Shop.jar")
    return tmp_path


def read(files: Files, **more: object) -> Manifest:
    with manifest_file(Single("", Path("owner.pem"), files=files, **more)) as path:  # type: ignore[arg-type]
        manifest = read_manifest(path)
    assert isinstance(manifest, Manifest)
    return manifest


def test_a_program(folder: Path) -> None:
    manifest = read(Files(Path("server")), memory="32M", percent=70, publish=[8080], environment={"A": "b"})
    (program,) = manifest.programs
    assert manifest.name == program.zone.name == "server"
    assert program.files == (folder / "server",) and program.application.command == ("./server",)
    assert (program.zone.memory, program.zone.percent) == (32 << 20, 70)
    assert [port.port for port in program.application.ports] == [8080]
    assert read(Files(Path("server"), ["./server", "-v"])).programs[0].application.command == ("./server", "-v")


def test_a_folder(folder: Path) -> None:
    words, packages = ["python3", "main.py", "--rows", "9"], ["libgomp1"]
    (program,) = read(Files(Path("project"), words, packages, Path("requirements.txt")), name="analysis").programs
    assert program.merge and program.files == (folder / "project",)
    assert program.application.command == tuple(words) and program.packages == ("libgomp1",)
    assert program.requirements == folder / "requirements.txt"
    assert program.application.environment["VIRTUAL_ENV"] == "/app/analysis/.venv"
    with pytest.raises(ConfigError, match="project is a folder"):
        read(Files(Path("project")))


def test_a_java_archive(folder: Path) -> None:
    (program,) = read(Files(Path("Shop.jar"), ["--port", "8080"])).programs
    assert program.application.name == "shop" and program.packages == ("openjdk-21-jre-headless",)
    assert program.application.command[-4:] == ("-jar", "Shop.jar", "--port", "8080")
    assert read(Files(Path("Shop.jar"))).programs[0].application.command[-2:] == ("-jar", "Shop.jar")


def test_names_of_programs() -> None:
    assert [name_of(f"/srv/{name}") for name in ("shop.jar", "My_App", "x.d")] == ["shop", "my-app", "x-d"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "neither a manifest nor a --container, --app or --vm"),
        ("shop.yaml --memory 1G", "--memory without --container, --app or --vm"),
        ("shop.yaml --package redis", "--package without --container, --app or --vm"),
        ("shop.yaml --system-memory 1G", "--system-memory without --container, --app or --vm"),
        ("shop.yaml ./server", "'./server' beside a manifest"),
        ("--app server", "--app needs the --owner"),
        ("--app server --container x --owner owner.pem", "one of --container, --app and --vm"),
        ("--app server --user 7 --owner owner.pem", "--user without --container"),
        ("--app server --command x --owner owner.pem", "--command without --container"),
        ("--container x --package redis --owner owner.pem", "--package without --app"),
        ("shop.yaml --container x --owner owner.pem", "a manifest and a --container"),
        ("--app none --owner owner.pem", "one in a manifest begins"),
        ("--app server --owner none.pem", "'vambrace owner show > owner.pem'"),
        ("--app server --owner owner.pem -- --port 80", "the whole command: ./server --port …"),
        ("--app server --owner owner.pem --publish 8080 --publish 8080", "port 8080: appears twice"),
        ("--app server --owner owner.pem --port", "unrecognized arguments: --port\nhint: see 'vambrace image build"),
        ("server", "not UTF-8 text\nhint: the manifest is a YAML file"),
        ("--app server --owner owner.pem --memory 128", "from 16 to 1048576 MiB"),
        ("--container project --owner owner.pem", "project is no container image"),
    ],
)
def test_what_does_not_go_together(folder: Path, capsys: pytest.CaptureFixture[str], words: str, says: str) -> None:
    assert main(["image", "build", *words.split()]) in (2, 3)
    assert says in capsys.readouterr().err


def test_the_command_goes_behind_two_hyphens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own options are not vambrace's; and of a program nothing is built that could not run."""
    (folder / "server").write_bytes(make_elf(machine=62))
    (folder / "server").chmod(0o755)
    words = ["--app", "server", "--owner", "owner.pem", "-o", "out", "--", "./server", "--memory", "x", "--json"]
    assert main(["image", "build", *words]) == 3
    assert "server is for x86-64" in capsys.readouterr().err
    assert not (folder / "out").exists()
