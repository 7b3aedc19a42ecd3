"""A runtime base of a few bytes, on which images are built in no time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from config_factory import make_elf, make_kernel

from vambrace.debian.erofs import VerityDisk
from vambrace.image.base import RuntimeBase

DISK = b"base" * 2048


def make_base(folder: Path, kernel: bytes | None = None, initrd: bytes = b"i" * 5000) -> RuntimeBase:
    """In ``folder``; its system has a python3 and nothing else."""
    for name, data in (("kernel", kernel or make_kernel()), ("initrd", initrd), ("disk", DISK)):
        (folder / name).write_bytes(data)
    info = VerityDisk(hashlib.sha256(DISK).hexdigest(), len(DISK), 4096, "ab" * 32, "cd" * 32)
    python = folder / "tree/usr/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_bytes(make_elf())
    python.chmod(0o755)
    return RuntimeBase(folder / "kernel", folder / "initrd", folder / "disk", info, folder / "tree")
