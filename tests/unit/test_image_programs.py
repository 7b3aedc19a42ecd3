"""Programs in files: static ones, others with libraries, scripts, Java archives; and what cannot run in the guest."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from config_factory import make_application, make_elf, owner

from vambrace.errors import ConfigError
from vambrace.image.java import JavaArchive, machine_options
from vambrace.image.manifest import Manifest, read_manifest
from vambrace.image.programs import check_program

COMPILER = "aarch64-linux-gnu-gcc"
PROGRAM = "int answer(void); int main(void) { return answer(); }\n"
LIBRARY = "int answer(void) { return 0; }\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system with a shell and a dynamic linker, each a header of an ELF file."""
    tree = tmp_path / "tree"
    linker = "usr/lib/ld-linux-aarch64.so.1"
    for path in ("usr/bin/sh", "usr/bin/env", linker, "usr/lib/aarch64-linux-gnu/libc.so.6"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(make_elf(kind=3))
        (tree / path).chmod(0o755)
    (tree / "bin").symlink_to("usr/bin")
    (tree / "lib").symlink_to("usr/lib")
    return tree


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def put(files: Path, name: str, content: bytes | str, mode: int = 0o755) -> None:
    (files / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (files / name).chmod(mode)


def check(tree: Path, files: Path, program: str = "./server", **environment: str) -> None:
    check_program(make_application(command=(program,), environment=environment), tree, files)


def compile_program(files: Path, *options: str) -> None:
    """A program that needs ``libanswer.so``, which is compiled into ``files/lib``."""
    (files / "lib").mkdir()
    for name, source in (("program.c", PROGRAM), ("library.c", LIBRARY)):
        (files / name).write_text(source)
    library = files / "lib/libanswer.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, files / "library.c"], check=True)
    command = [COMPILER, "-o", files / "server", files / "program.c", "-L", files / "lib", "-lanswer", *options]
    subprocess.run(command, check=True)


def test_a_static_program(tree: Path, files: Path) -> None:
    (files / "main.c").write_text("int main(void) { return 0; }\n")
    subprocess.run([COMPILER, "-static", "-o", files / "server", files / "main.c"], check=True)
    for command in ("./server", "/app/analysis/server", "/app/analysis/../analysis/server"):
        check(tree, files, command)


def test_a_program_with_its_libraries(tree: Path, files: Path) -> None:
    compile_program(files)
    with pytest.raises(ConfigError, match=r"application analysis: \./server needs the library libanswer\.so"):
        check(tree, files)
    check(tree, files, LD_LIBRARY_PATH="/app/analysis/lib")
    (tree / "etc/ld.so.conf.d").mkdir(parents=True)
    (tree / "etc/ld.so.conf.d/own.conf").write_text("# folders\n/app/analysis/lib\n")
    check(tree, files)


def test_a_program_that_says_where_its_libraries_are(tree: Path, files: Path) -> None:
    compile_program(files, "-Wl,-rpath,$ORIGIN/lib")
    check(tree, files)
    (tree / "usr/lib/aarch64-linux-gnu/libc.so.6").unlink()
    with pytest.raises(ConfigError, match=r"needs the library libc\.so\.6") as caught:
        check(tree, files)
    assert "packages" in str(caught.value.hint)


def test_a_program_behind_a_link(tree: Path, files: Path) -> None:
    """$ORIGIN is where the program is, not where a link to it is, as with alternatives."""
    compile_program(files, "-Wl,-rpath,$ORIGIN/lib")
    (tree / "usr/bin/server").symlink_to("/etc/alternatives/server")
    (tree / "etc/alternatives").mkdir(parents=True)
    (tree / "etc/alternatives/server").symlink_to("/app/analysis/server")
    check(tree, files, "server")


def test_another_dynamic_linker(tree: Path, files: Path) -> None:
    (files / "main.c").write_text("int main(void) { return 0; }\n")
    musl = "-Wl,--dynamic-linker=/lib/ld-musl-aarch64.so.1"
    subprocess.run([COMPILER, musl, "-o", files / "server", files / "main.c"], check=True)
    with pytest.raises(ConfigError, match=r"needs the dynamic linker /lib/ld-musl-aarch64\.so\.1"):
        check(tree, files)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (make_elf(machine=62), "is for x86-64"),
        (make_elf(machine=40), "is for 32-bit Arm"),
        (make_elf(machine=4711), "is for 4711"),
        (make_elf(kind=1), "does not run"),
        (make_elf()[:30], "damaged"),
        (b"\x7fELF" + b"\xff" * 300, "damaged|is for"),
        (b"MZ", "neither a program nor a script"),
        (b"", "neither a program nor a script"),
        ("#!/usr/bin/python4\n", "/usr/bin/python4: no such program"),
        ("#!/usr/bin/env ruby\n", "ruby: no such program"),
        ("#!\n", "names no interpreter"),
        ("#!./server\n", "names no interpreter"),
    ],
)
def test_what_cannot_run(tree: Path, files: Path, content: bytes | str, says: str) -> None:
    put(files, "server", content)
    with pytest.raises(ConfigError, match=says) as caught:
        check(tree, files)
    assert caught.value.hint


def test_programs_that_are_found(tree: Path, files: Path) -> None:
    put(files, "server", "#!/usr/bin/env sh\n")
    check(tree, files)
    check(tree, files, "sh")
    check(tree, files, "server", PATH="/nowhere:/app/analysis:/usr/bin")
    for program in ("server", "../../../etc/passwd", "/etc/passwd", "/app/analysis"):
        with pytest.raises(ConfigError, match="no such program"):
            check(tree, files, program)
    put(files, "server", "#!/bin/sh\n", 0o644)
    with pytest.raises(ConfigError, match="not executable"):
        check(tree, files)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_programs_are_told_in_one_line(tree: Path, files: Path, seed: int) -> None:
    """Each with some bytes of its headers and tables changed: accepted or refused, and never another error."""
    content = bytearray(make_elf() + bytes(4096))
    content[32:40] = (64).to_bytes(8, "little")  # where the program headers are
    content[56] = 3
    for number in range(64, 700, 1 + seed % 7):
        content[number] = (number * (seed + 3) * 2654435761 >> 7) & 0xFF
    put(files, "server", bytes(content))
    try:
        check(tree, files)
    except ConfigError as error:
        assert "\n" not in error.message


# Java


def make_archive(path: Path, manifest: str | None = "Main-Class: org.example.Main\n") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("org/example/Main.class", b"\xca\xfe\xba\xbe")
        if manifest is not None:
            archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n" + manifest)
    return path


def read(folder: Path, text: str) -> Manifest:
    (folder / "owner.pem").write_text(owner()[0])
    (folder / "shop.yaml").write_text(f"name: shop\nowner: owner.pem\napplications:\n  - {{name: shop, {text}}}\n")
    manifest = read_manifest(folder / "shop.yaml")
    assert isinstance(manifest, Manifest)
    return manifest


def test_a_java_archive(tmp_path: Path) -> None:
    make_archive(tmp_path / "shop.jar")
    (program,) = read(tmp_path, "java: shop.jar, memory: 192M").programs
    assert program.packages == ("openjdk-21-jre-headless",)
    assert program.files == (tmp_path / "shop.jar",) and not program.merge
    command = program.application.command
    assert command == ("java", *machine_options(192 << 20), "-jar", "shop.jar")
    assert "-Xmx96m" in command and "-XX:ReservedCodeCacheSize=24m" in command


def test_a_java_archive_with_more(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    make_archive(tmp_path / "target/shop.jar")
    java = "java: {archive: target/shop.jar, options: [-Xmx32m], arguments: [--port, '8080']}"
    (program,) = read(tmp_path, f"{java}, files: target, packages: [openjdk-17-jre-headless]").programs
    assert program.packages == ("openjdk-17-jre-headless",)
    assert program.files == (tmp_path / "target",) and program.merge
    assert program.application.command[-5:] == ("-Xmx32m", "-jar", "shop.jar", "--port", "8080")
    (tmp_path / "other").mkdir()
    make_archive(tmp_path / "other/shop.jar")
    with pytest.raises(ConfigError, match="have the same name"):
        read(tmp_path, "java: other/shop.jar, files: target")


@pytest.mark.parametrize("manifest", [None, "", "Not-Main-Class: x\n"])
def test_archives_that_do_not_start(tmp_path: Path, manifest: str | None) -> None:
    make_archive(tmp_path / "shop.jar", manifest)
    with pytest.raises(ConfigError, match="no Java archive|names no Main-Class") as caught:
        read(tmp_path, "java: shop.jar")
    assert caught.value.line == 4


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "shop.jar").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match="no Java archive"):
        JavaArchive(tmp_path / "shop.jar").check()
    with pytest.raises(ConfigError, match="no Java archive"):
        JavaArchive(tmp_path / "none.jar").check()
    name = "META-INF/MANIFEST.MF"
    with zipfile.ZipFile(tmp_path / "shop.jar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, "Main-Class: shop\n" * 100)
    data = (tmp_path / "shop.jar").read_bytes()
    (tmp_path / "shop.jar").write_bytes(data.replace(data[30 + len(name) :][:8], b"\xff" * 8))
    with pytest.raises(ConfigError, match="no Java archive"):
        JavaArchive(tmp_path / "shop.jar").check()


def test_options_of_small_and_large_zones() -> None:
    assert "-Xmx8m" in machine_options(4 << 20) and "-XX:ReservedCodeCacheSize=16m" in machine_options(4 << 20)
    assert "-Xmx4096m" in machine_options(8 << 30) and "-XX:ReservedCodeCacheSize=240m" in machine_options(8 << 30)
