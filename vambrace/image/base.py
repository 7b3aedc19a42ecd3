"""The runtime base of application images: Debian's arm64 Python with its standard library, and the agent."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import vambrace
from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache, hash_tree
from vambrace.debian.erofs import VerityDisk, make_erofs
from vambrace.debian.initrd import DISK_MODULES, make_initrd
from vambrace.debian.kernel import kernel
from vambrace.errors import BuildError

PACKAGES = (
    "base-files",
    "base-passwd",
    "busybox-static",
    "coreutils",
    "libssl3t64",
    "openssl",
    "python3",
)
MODULES = (*DISK_MODULES, "virtio_console", "virtio-rng", "virtio_balloon", "vsock", "vmw_vsock_virtio_transport")
APPLETS = ("sh", "awk", "cmp", "find", "grep", "gzip", "sed", "tar", "vi", "xargs")
INIT = "/usr/lib/vambrace/init"
# What no program in a Realm uses: package tools, odd character sets, parts of the standard library.
_UNUSED = (
    "usr/lib/*/gconv",
    "usr/lib/*/perl-base",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/include",
    "usr/src",
    "usr/share/perl5",
    "usr/share/dpkg",
    "var/lib/dpkg",
    *(f"usr/lib/python3.*/{part}" for part in ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo")),
)


@dataclass(frozen=True)
class RuntimeBase:
    """Files of the cache that every application image shares, and the base disk's verity parameters."""

    kernel: Path
    initrd: Path
    disk: Path
    disk_info: VerityDisk


def runtime_base(archive: Archive, cache: Cache) -> RuntimeBase:
    """The base, built if the cache does not have it. Raises ``BuildError``, ``ToolMissing``."""
    guest = Path(vambrace.__file__).parent.parent / "guest"
    if not (guest / "init").is_file():
        raise BuildError("the agent's source is not here", hint="run from a source checkout of vambrace")
    packages = archive.binaries("realm", PACKAGES)
    debian = _debian(archive, cache)

    def build(work: Path) -> None:
        tree = work / "tree"
        shutil.copytree(debian, tree, symlinks=True)
        home = tree / "usr/lib/vambrace"
        home.mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(guest / "agent", home / "agent", ignore=ignored)
        shutil.copyfile(guest / "init", home / "init")
        _normalise(home)
        (home / "init").chmod(0o755)
        root.compile_python(tree, "usr/lib/vambrace/agent")
        verity = make_erofs(tree, work / "base.erofs")
        (work / "verity.json").write_text(json.dumps(asdict(verity)))
        shutil.rmtree(tree)

    inputs = {
        "packages": archive.key(packages),
        "applets": " ".join(APPLETS),
        "guest": hash_tree(guest),
        "recipe": "2",
    }
    product = cache.build("realm-base", inputs, build)
    verity = VerityDisk(**json.loads((product / "verity.json").read_text()))
    image = kernel(archive, cache)
    return RuntimeBase(image.image, make_initrd(archive, cache, image, MODULES), product / "base.erofs", verity)


def _debian(archive: Archive, cache: Cache) -> Path:
    """Debian's part of the base, byte-compiled: it changes seldom and takes longest."""
    packages = archive.binaries("realm", PACKAGES)

    def build(work: Path) -> None:
        tree = work / "tree"
        root.build_root(archive.fetch(packages), tree)
        for pattern in _UNUSED:
            for folder in tree.glob(pattern):
                shutil.rmtree(folder)
        for applet in APPLETS:
            link = tree / "usr/bin" / applet
            if not link.exists():
                link.symlink_to("busybox")
        root.compile_python(tree, *(f"usr/lib/{p.name}" for p in sorted((tree / "usr/lib").glob("python3*"))))
        _strip_privileges(tree)

    inputs = {"packages": archive.key(packages), "applets": " ".join(APPLETS), "recipe": "2"}
    return cache.build("realm-debian", inputs, build) / "tree"


def _strip_privileges(tree: Path) -> None:
    """Take set-id bits away: nothing in a Realm gains privileges by running a program."""
    for path in tree.rglob("*"):
        if not path.is_symlink() and path.stat().st_mode & 0o6000:
            path.chmod(path.stat().st_mode & 0o1777)


def _normalise(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
