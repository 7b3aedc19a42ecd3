"""A root tree from Debian packages: unpacked, not installed, so that no foreign code runs while building."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vambrace.debian import tools
from vambrace.errors import BuildError

# What a running system never reads; left out to keep images small.
_UNUSED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/bash-completion",
)


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Unpack .deb files into ``root`` as a merged-/usr tree. Raises BuildError."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        archive = subprocess.run(
            [tools.find("dpkg-deb"), "--fsys-tarfile", str(package)], capture_output=True, check=False
        )
        if archive.returncode:
            raise BuildError(f"{package.name} is not a Debian package", hint="delete it from the cache, try again")
        command: list[str | Path] = [
            "tar",
            "-x",
            "-C",
            root,
            "--keep-directory-symlink",
            "--no-same-owner",
            "--preserve-permissions",
            "--delay-directory-restore",
        ]
        tools.run(command, stdin=archive.stdout)


def build_root(packages: Sequence[Path], root: Path) -> None:
    """A usable root: ``packages`` unpacked, accounts and mount points made, documentation left out."""
    unpack(packages, root)
    for path in _UNUSED:
        shutil.rmtree(root / path, ignore_errors=True)
    masters = root / "usr/share/base-passwd"
    (root / "etc").mkdir(exist_ok=True)
    for name in ("passwd", "group"):
        if (masters / f"{name}.master").exists():
            shutil.copyfile(masters / f"{name}.master", root / "etc" / name)
    (root / "etc/hostname").write_text("vambrace\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vambrace\n")
    for name in ("proc", "sys", "dev", "run", "tmp", "state", "app", "results"):
        (root / name).mkdir(exist_ok=True)
    for top in (root / "bin", root / "sbin", root / "lib"):
        if not top.is_symlink():
            raise BuildError(f"a package replaced /{top.name} by a folder")


def python_interpreter(root: Path) -> Path:
    """The tree's Python. Raises BuildError where there is none."""
    interpreter = next(iter(sorted((root / "usr/bin").glob("python3.[0-9]*"))), None)
    if interpreter is None or not re.fullmatch(r"python3\.\d+", interpreter.name):
        raise BuildError("the tree holds no Python interpreter")
    return interpreter


def compile_python(root: Path, *folders: str) -> None:
    """Byte-compile ``folders`` (relative to ``root``) with the tree's own interpreter, under user-mode emulation.

    Importing from source costs seconds where the system is read-only and the processor emulated. The compiled files
    are not checked against the source at run time: both are covered by the same dm-verity hash.
    """
    options = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    _run_python(root, [*options, "-s", root, "-p", "/", *(root / folder for folder in folders)])


def compile_modules(root: Path, folder: Path, place: str) -> None:
    """As ``compile_python`` for foreign modules in ``folder``, which will be at ``place``; what is no good Python stays
    as it is."""
    program = (
        "import compileall, py_compile, sys; compileall.compile_dir(sys.argv[1], quiet=2, stripdir=sys.argv[1], "
        "prependdir=sys.argv[2], invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    )
    _run_python(root, ["-c", program, folder, place])


def _run_python(root: Path, arguments: Sequence[str | Path]) -> None:
    """-P: no module comes from the present folder, which may be a stranger's project."""
    tools.run(
        ["qemu-aarch64-static", "-L", root, python_interpreter(root), "-S", "-P", *arguments],
        env={"PYTHONHASHSEED": "0", "PYTHONHOME": str(root / "usr"), "SOURCE_DATE_EPOCH": "0"},
    )
