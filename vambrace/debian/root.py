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


def compile_python(root: Path, *folders: str) -> None:
    """Byte-compile ``folders`` (relative to ``root``) with the tree's own interpreter, under user-mode emulation.

    Importing from source costs seconds where the system is read-only and the processor emulated. The compiled files
    are not checked against the source at run time: both are covered by the same dm-verity hash.
    """
    interpreter = next(iter(sorted((root / "usr/bin").glob("python3.[0-9]*"))), None)
    if interpreter is None or not re.fullmatch(r"python3\.\d+", interpreter.name):
        raise BuildError("the tree holds no Python interpreter")
    tools.run(
        [
            "qemu-aarch64-static",
            "-L",
            root,
            interpreter,
            "-S",
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            root,
            "-p",
            "/",
            *(root / folder for folder in folders),
        ],
        env={"PYTHONHASHSEED": "0", "PYTHONHOME": str(root / "usr"), "SOURCE_DATE_EPOCH": "0"},
    )
