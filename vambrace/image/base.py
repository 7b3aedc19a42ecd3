"""The runtime base of application images: Debian's arm64 Python with its standard library, and the agent.

A manifest may name further packages of Debian (``packages``): its base is another one, which has them all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import vambrace
from vambrace.application import MAX_APPLICATIONS
from vambrace.debian import root
from vambrace.debian.archive import Archive, Package
from vambrace.debian.cache import Cache, hash_tree
from vambrace.debian.configure import configure
from vambrace.debian.elf import libraries
from vambrace.debian.erofs import VerityDisk, make_erofs
from vambrace.debian.initrd import DISK_MODULES, make_initrd
from vambrace.debian.kernel import kernel
from vambrace.errors import BuildError
from vambrace.storage import DATA, SCRATCH

PACKAGES = (
    "base-files",
    "base-passwd",
    "busybox-static",
    "coreutils",
    "libssl3t64",
    "openssl",
    "python3",
)
#: For containers: what runs them, and what puts a layer of the run over their images.
CONTAINER_PACKAGES = ("crun",)
CONTAINER_MODULES = ("overlay",)
#: For the system of a disk: the file systems that there may be on it, beside EROFS.
SYSTEM_MODULES = ("ext4", "squashfs")
# Of other packages the base has these programs alone, with the libraries that they need: what makes file systems.
TOOLS = {"storage": ("e2fsprogs", "usr/sbin/mke2fs")}
MODULES = (*DISK_MODULES, "virtio_console", "virtio-rng", "virtio_balloon", "vsock", "vmw_vsock_virtio_transport")
APPLETS = ("sh", "awk", "cmp", "find", "grep", "gzip", "sed", "tar", "vi", "xargs")
INIT = "/usr/lib/vambrace/init"
# What no program in a Realm uses: package tools, parts of the standard library.
_UNUSED = (
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/include",
    "usr/src",
    "usr/share/dpkg",
    "var/lib/dpkg",
    *(f"usr/lib/python3.*/{part}" for part in ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo")),
)
# What only a further package may use: Perl, odd character sets.
_UNUSED_ALONE = ("usr/lib/*/gconv", "usr/lib/*/perl-base", "usr/share/perl5")
# Many programs want a name for whoever runs them. The agent gives numbers from 1000 on (vambrace_agent.settings).
_ACCOUNTS = tuple(
    f"application-{number}:*:{999 + number}:{999 + number}::/results:/bin/sh"
    for number in range(1, MAX_APPLICATIONS + 1)
)


@dataclass(frozen=True)
class RuntimeBase:
    """Files of the cache that application images share, and the base disk's verity parameters; ``tree`` is the system
    that the disk was made of, for those who look for a program or a library in it; ``containers``: it can run them;
    ``systems``: it can run the system of a disk."""

    kernel: Path
    initrd: Path
    disk: Path
    disk_info: VerityDisk
    tree: Path
    containers: bool = False
    systems: bool = False


def runtime_base(
    archive: Archive, cache: Cache, packages: Sequence[Package] = (), *, containers: bool = False, systems: bool = False
) -> RuntimeBase:
    """The base, built if the cache does not have it; of ``packages`` in the place of the usual ones, if there are any.
    With ``containers``, it can run them, and ``packages`` have those of ``CONTAINER_PACKAGES`` among them;
    with ``systems``, it can run the system of a disk as well.

    Raises ``BuildError``, ``ToolMissing``.
    """
    guest = Path(vambrace.__file__).parent.parent / "guest"
    if not (guest / "init").is_file():
        raise BuildError("the agent's source is not here", hint="run from a source checkout of vambrace")
    containers = containers or systems
    debian = _debian(archive, cache, packages, containers)

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
        **_inputs(archive, packages, containers),
        "guest": hash_tree(guest),
    }
    product = cache.build("realm-base", inputs, build)
    verity = VerityDisk(**json.loads((product / "verity.json").read_text()))
    image = kernel(archive, cache)
    modules = (*MODULES, *(CONTAINER_MODULES if containers else ()), *(SYSTEM_MODULES if systems else ()))
    initrd = make_initrd(archive, cache, image, modules)
    return RuntimeBase(image.image, initrd, product / "base.erofs", verity, debian, containers, systems)


def _usual(archive: Archive, containers: bool) -> list[Package]:
    if containers:
        return archive.binaries("realm-containers", (*PACKAGES, *CONTAINER_PACKAGES))
    return archive.binaries("realm", PACKAGES)


def _inputs(archive: Archive, packages: Sequence[Package], containers: bool) -> dict[str, str]:
    """What decides how Debian's part of the base comes out."""
    found = archive.key(packages or _usual(archive, containers))
    tools = archive.key([package for group, (name, _) in TOOLS.items() for package in archive.binaries(group, [name])])
    inputs = {"packages": found, "tools": tools, "applets": " ".join(APPLETS), "recipe": "3"}
    return inputs | {"accounts": " ".join(_ACCOUNTS), "configured": "1"} if packages else inputs


def _debian(archive: Archive, cache: Cache, further: Sequence[Package], containers: bool) -> Path:
    """Debian's part of the base, byte-compiled: it changes seldom and takes longest."""
    packages = further or _usual(archive, containers)

    def build(work: Path) -> None:
        tree = work / "tree"
        files = archive.fetch(packages)
        root.build_root(files, tree)
        for group, (package, program) in TOOLS.items():
            root.unpack(archive.fetch(archive.binaries(group, [package])), work / group)
            _add_program(work / group, program, tree)
            shutil.rmtree(work / group)
        for place in (SCRATCH, DATA):
            (tree / place[1:]).mkdir()
        if further:
            configure(files, tree, _ACCOUNTS)
        for pattern in _UNUSED if further else (*_UNUSED, *_UNUSED_ALONE):
            for folder in tree.glob(pattern):
                shutil.rmtree(folder)
        for applet in APPLETS:
            link = tree / "usr/bin" / applet
            if not os.path.lexists(link):
                link.symlink_to("busybox")
        root.compile_python(tree, *(f"usr/lib/{p.name}" for p in sorted((tree / "usr/lib").glob("python3*"))))
        _strip_privileges(tree)

    return cache.build("realm-debian", _inputs(archive, further, containers), build) / "tree"


def _add_program(packages: Path, program: str, tree: Path) -> None:
    """Copy ``program`` and its libraries, as far as ``tree`` has not got them."""
    for source in (packages / program, *libraries(packages, packages / program)):
        target = tree / source.relative_to(packages)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755)


def _strip_privileges(tree: Path) -> None:
    """Take set-id bits away: nothing in a Realm gains privileges by running a program."""
    for path in tree.rglob("*"):
        if not path.is_symlink() and path.stat().st_mode & 0o6000:
            path.chmod(path.stat().st_mode & 0o1777)


def _normalise(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
