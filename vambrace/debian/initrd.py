"""The measured initrd, for the host and for Realms: mount verity disks named on the command line, hand over. And one
for a Normal VM, which mounts a disk as it is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.elf import libraries
from vambrace.debian.kernel import Kernel

# Enough to find a disk and mount it; callers add what their machine has.
DISK_MODULES = ("dm-mod", "dm-verity", "erofs", "virtio_mmio", "virtio_blk")
# Loaded where the command line says vambrace.network.
NETWORK_MODULES = ("virtio_net",)
# Loaded, behind those, where it says vambrace.devices: the IOMMU's driver, which PCI devices wait for, and one for
# network cards (NVMe is built in).
DEVICE_MODULES = ("virtio_iommu", "ixgbevf")
# Loaded where it says vambrace.storage: what encrypts and authenticates disks that the host keeps.
STORAGE_MODULES = ("dm-crypt", "dm-integrity", "xts")
# And these, where the processor has the instructions that they need.
STORAGE_HELPERS = ("aes-ce-blk", "sha2-ce")
_WHERE_ASKED = {
    "network": NETWORK_MODULES,
    "devices": DEVICE_MODULES,
    "storage": STORAGE_MODULES,
    "helpers": STORAGE_HELPERS,
}
_BEHIND = {"devices": "network", "helpers": "storage"}
_APPLETS = ("sh", "mount", "umount", "insmod", "cat", "sleep", "poweroff", "switch_root")


def make_initrd(archive: Archive, cache: Cache, kernel: Kernel, modules: Sequence[str] = DISK_MODULES) -> Path:
    """An uncompressed newc archive (the same bits for the same inputs). Raises BuildError."""

    def fill(out: Path, packages: Path) -> None:
        (out / "lib").mkdir()
        (out / "lib64").symlink_to("lib")
        _copy(packages / "usr/sbin/dmsetup", out / "bin/dmsetup")
        for library in libraries(packages, packages / "usr/sbin/dmsetup"):
            _copy(library, out / "lib" / library.name)
        always = kernel.closure(list(modules))
        lists = {"order": always}
        for name, more in _WHERE_ASKED.items():
            # What a list needs of an earlier one is loaded before it.
            before = [*always, *(lists[_BEHIND[name]] if name in _BEHIND else [])]
            lists[name] = [module for module in kernel.closure([*modules, *more]) if module not in before]
        for name, files in lists.items():
            _list_modules(out, name, files)

    inputs = {"modules": " ".join((*modules, *(f"{name}: {' '.join(more)}" for name, more in _WHERE_ASKED.items())))}
    return _make(archive, cache, kernel, "initrd", ("busybox-static", "dmsetup"), fill, inputs | {"recipe": "3"})


def make_system_initrd(archive: Archive, cache: Cache, kernel: Kernel, modules: Sequence[str]) -> Path:
    """Loads the ``modules`` that a root is behind, mounts what ``root=`` names and hands over. Raises BuildError."""

    def fill(out: Path, _packages: Path) -> None:
        _list_modules(out, "order", kernel.closure(list(modules)))

    inputs = {"modules": " ".join(modules), "recipe": "2"}
    return _make(archive, cache, kernel, "system-initrd", ("busybox-static",), fill, inputs)


def _make(
    archive: Archive,
    cache: Cache,
    kernel: Kernel,
    name: str,
    wanted: Sequence[str],
    fill: Callable[[Path, Path], None],
    inputs: dict[str, str],
) -> Path:
    """The initrd ``name``: busybox, ``name``.sh as its init, and what ``fill`` puts into its tree, given also that of
    the unpacked packages. ``inputs`` decide on what."""
    script = resources.files(__package__).joinpath(f"{name}.sh").read_bytes()
    packages = archive.binaries("initrd", wanted)
    ours = {
        "packages": archive.key(packages),
        "kernel": hashlib.sha256(kernel.image.read_bytes()).hexdigest(),
        "script": hashlib.sha256(script).hexdigest(),
    }

    def build(work: Path) -> None:
        tree, out = work / "packages", work / "tree"
        root.unpack(archive.fetch(packages), tree)
        for folder in ("bin", "modules", "dev", "proc", "sys", "root"):
            (out / folder).mkdir(parents=True)
        (out / "init").write_bytes(script)
        (out / "init").chmod(0o755)
        _copy(tree / "usr/bin/busybox", out / "bin/busybox")
        for applet in _APPLETS:
            (out / "bin" / applet).symlink_to("busybox")
        fill(out, tree)
        (work / "initrd").write_bytes(cpio(out))
        shutil.rmtree(tree)
        shutil.rmtree(out)

    return cache.build(name, ours | inputs, build) / "initrd"


def _list_modules(out: Path, name: str, modules: Sequence[Path]) -> None:
    """Copy them, and write the list ``name`` of them in the order in which they are loaded."""
    for module in modules:
        _copy(module, out / "modules" / module.name)
    (out / "modules" / name).write_text("".join(f"{module.name}\n" for module in modules))


def cpio(tree: Path) -> bytes:
    """``tree`` as a newc archive (cpio(5)): sorted, owned by root, times zero."""
    chunks = []
    entries = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*"))
    for number, name in enumerate([*entries, "TRAILER!!!"], start=1):
        path = tree / name
        if name == "TRAILER!!!":
            mode, data = 0, b""
        elif path.is_symlink():
            mode, data = 0o120777, str(path.readlink()).encode()
        elif path.is_dir():
            mode, data = 0o040755, b""
        else:
            mode, data = 0o100644 | (path.stat().st_mode & 0o111), path.read_bytes()
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        chunks.append(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))
    return b"".join(chunks)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)
