"""Libraries of Debian's programs, by what real ones need of each other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from config_factory import make_elf

from vambrace.debian.elf import libraries, read_elf
from vambrace.errors import BuildError

COMPILER = "aarch64-linux-gnu-gcc"
LINKER = "ld-linux-aarch64.so.1"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """usr/bin/program needs libone, which needs libtwo, which is in the other of the two folders; all need libc."""
    usr = tmp_path / "tree/usr"
    folder = usr / "lib/aarch64-linux-gnu"
    for made in (folder, usr / "bin"):
        made.mkdir(parents=True)
    for path in (folder / "libc.so.6", usr / "lib" / LINKER):
        path.write_bytes(make_elf(kind=3))
    compiled(usr / "lib/libtwo.so.2", "int two(void) { return 2; }", "-shared", "-Wl,-soname,libtwo.so.2")
    one = "int two(void); int one(void) { return two(); }"
    compiled(folder / "libone.so.1", one, "-shared", "-Wl,-soname,libone.so.1", usr / "lib/libtwo.so.2")
    main = "int one(void); int main(void) { return one(); }"
    compiled(usr / "bin/program", main, folder / "libone.so.1", "-Wl,-rpath-link", usr / "lib")
    return tmp_path / "tree"


def compiled(out: Path, source: str, *options: str | Path) -> None:
    words = ["-fPIC", "-x", "c", "-", "-x", "none", *options]
    subprocess.run([COMPILER, "-o", out, *words], input=source.encode(), check=True)


def test_libraries_with_those_that_they_need(tree: Path) -> None:
    program, folder = tree / "usr/bin/program", tree / "usr/lib/aarch64-linux-gnu"
    needed = read_elf(program)
    assert needed.linker == f"/lib/{LINKER}" and needed.libraries == ("libone.so.1", "libc.so.6")
    wanted = [tree / "usr/lib" / LINKER, folder / "libc.so.6", folder / "libone.so.1", tree / "usr/lib/libtwo.so.2"]
    assert libraries(tree, program) == wanted


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("usr/lib/libtwo.so.2", None, r"program needs libtwo\.so\.2, which no package brought"),
        ("usr/lib/libtwo.so.2", b"MZ", r"program of Debian's packages: libtwo\.so\.2 is a damaged ELF file"),
        ("usr/bin/program", make_elf(machine=62), "program is for x86-64"),
    ],
)
def test_what_packages_should_have_brought(tree: Path, path: str, content: bytes | None, says: str) -> None:
    (tree / path).unlink()
    if content is not None:
        (tree / path).write_bytes(content)
    with pytest.raises(BuildError, match=says):
        libraries(tree, tree / "usr/bin/program")
