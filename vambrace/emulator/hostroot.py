"""The host's read-only root, with vambrace installed in it as on a real server."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import vambrace
from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache, hash_tree
from vambrace.debian.erofs import VerityDisk, make_erofs
from vambrace.debian.initrd import DISK_MODULES, make_initrd
from vambrace.debian.kernel import Kernel, kernel
from vambrace.emulator.crossbuild import cross_build
from vambrace.errors import BuildError

PACKAGES = (
    "base-files",
    "base-passwd",
    "busybox-static",
    "coreutils",
    "libssl3t64",
    "libteec2",
    "openssl",
    "python3",
    "python3-aiohttp",
    "python3-cryptography",
    "python3-prometheus-client",
    "python3-seccomp",
    "tee-supplicant",
)
SYSROOT_PACKAGES = ("libc6-dev", "libpython3.13-dev", "libssl-dev")
# Loaded by the measured initrd, so that the running host needs no module loading at all.
MODULES = (
    *(*DISK_MODULES, "virtio_net", "ext4", "tee", "optee", "vsock", "vhost_vsock", "virtio_console"),
    *("bridge", "tun", "vhost_net"),
    *("vfio_iommu_type1", "vfio_pci"),
)
APPLETS = ("sh", "blockdev", "mount", "mkdir", "mkfifo", "ip", "sleep", "poweroff", "false")
# What a host runs; the user's side of vambrace stays with the user.
PARTS = (
    *("attest", "config", "host", "image", "jail", "kvm", "machine", "measure", "pager", "partition", "pci"),
    *("serving", "trustzone", "vfio", "virtio"),
)
FILES = (
    *("__init__.py", "advice.py", "application.py", "cache.py", "canonical.py", "certificate.py", "checks.py"),
    *("classes.py", "container.py", "counts.py", "errors.py", "files.py", "record.py", "release.py"),
    *("storage.py", "suite.py"),
)
INIT = "/usr/lib/vambrace/host-init"
SITE = "usr/lib/python3/dist-packages"


@dataclass(frozen=True)
class Variant:
    """A host that is not the product's: tests and benchmarks must reach into a running one.

    It is measured like any other, so no verifier that expects the product's reference values takes it for that.
    ``packages`` are Debian's, beside the host's own; ``files`` are executable texts by their path in the root;
    ``ports`` are virtio serial ports, each a socket ``NAME.sock`` in the server's directory.
    """

    name: str
    packages: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    init: str = INIT
    words: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The lock's group of packages."""
        return self.name if self.packages else "host"


PRODUCT = Variant("host")


@dataclass(frozen=True)
class HostImage:
    """What the emulated server boots: files of the cache and the disk's verity parameters."""

    kernel: Kernel
    initrd: Path
    disk: Path
    verity: VerityDisk
    variant: Variant = PRODUCT

    def cmdline(self) -> str:
        """The measured kernel command line."""
        words = [
            "console=ttyAMA0",
            "quiet",
            "loglevel=4",
            "panic=-1",
            "init_on_free=1",
            "lockdown=confidentiality",
            "hibernate=no",
            "oops=panic",
            "numa_balancing=disable",
            # No driver of this kernel gets hold of a PCI device before a domain does.
            "initcall_blacklist=nvme_init,virtio_pci_driver_init",
            self.verity.mount_word("/dev/vda", "/"),
            f"vambrace.init={self.variant.init}",
            *self.variant.words,
        ]
        return " ".join(word for word in words if word not in self.variant.without)


def build_host(
    archive: Archive, cache: Cache, settings: str, vendor_root: bytes, variant: Variant = PRODUCT
) -> HostImage:
    """The host image; ``settings`` is the text of /etc/vambrace/host.toml, ``vendor_root`` the file that it names.

    Raises BuildError.
    """
    package = Path(vambrace.__file__).parent
    core = package.parent / "core"
    packages = archive.binaries(variant.group, PACKAGES + variant.packages)
    host_kernel = kernel(archive, cache)
    scripts = {
        INIT: (package / "emulator/host-init.sh").read_text(),
        "/usr/lib/vambrace/host-gate": (package / "emulator/host-gate.py").read_text(),
        **variant.files,
    }
    fdt = _wheel("fdt")
    extension = _extension(archive, cache, core)
    base = _base(archive, cache, variant)
    parts = [package / part for part in PARTS]
    inputs = {
        "packages": archive.key(packages),
        "vambrace": hash_tree(*parts, *(package / name for name in FILES)),
        "extension": hash_tree(extension),
        "fdt": hash_tree(fdt),
        **scripts,
        "settings": settings,
        "vendor_root": vendor_root.decode(),
        "recipe": "4",
    }

    def build(work: Path) -> None:
        tree = work / "tree"
        shutil.copytree(base, tree, symlinks=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
        site = tree / SITE
        for part in parts:
            shutil.copytree(part, site / "vambrace" / part.name, ignore=ignored)
        for name in FILES:
            shutil.copyfile(package / name, site / "vambrace" / name)
        shutil.copyfile(extension, site / "vambrace/pager" / extension.name)
        shutil.copytree(fdt, site / "fdt", ignore=ignored)
        root.compile_python(tree, f"{SITE}/vambrace", f"{SITE}/fdt")
        (tree / "usr/lib/vambrace").mkdir()
        for where, text in scripts.items():
            script = tree / where.lstrip("/")
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(text)
            script.chmod(0o755)
        (tree / "etc/vambrace").mkdir()
        (tree / "etc/vambrace/host.toml").write_text(settings)
        (tree / "etc/vambrace/vendor-root.pem").write_bytes(vendor_root)
        verity = make_erofs(tree, work / "root.img")
        (work / "verity.json").write_text(json.dumps(asdict(verity)))
        shutil.rmtree(tree)

    product = cache.build("host", inputs, build)
    verity = VerityDisk(**json.loads((product / "verity.json").read_text()))
    initrd = make_initrd(archive, cache, host_kernel, MODULES)
    return HostImage(host_kernel, initrd, product / "root.img", verity, variant)


def _base(archive: Archive, cache: Cache, variant: Variant) -> Path:
    """Debian's part of the root, byte-compiled: it changes seldom and takes longest."""
    packages = archive.binaries(variant.group, PACKAGES + variant.packages)

    def build(work: Path) -> None:
        tree = work / "tree"
        root.build_root(archive.fetch(packages), tree)
        for applet in APPLETS:
            link = tree / "usr/bin" / applet
            if not link.exists():
                link.symlink_to("busybox")
        shutil.rmtree(tree / "var/lib/tee", ignore_errors=True)
        (tree / "var/lib").mkdir(parents=True, exist_ok=True)
        (tree / "var/lib/tee").symlink_to("/state/tee")
        root.compile_python(tree, "usr/lib/python3.13", "usr/lib/python3")

    inputs = {"packages": archive.key(packages), "applets": " ".join(APPLETS), "recipe": "3"}
    return cache.build("host-base", inputs, build) / "tree"


def _extension(archive: Archive, cache: Cache, core: Path) -> Path:
    packages = archive.binaries("sysroot", SYSROOT_PACKAGES)
    if not core.is_dir():
        raise BuildError("the C core's source is not here", hint="run from a source checkout of vambrace")

    def unpack(work: Path) -> None:
        root.unpack(archive.fetch(packages), work / "tree")

    sysroot = cache.build("sysroot", {"packages": archive.key(packages)}, unpack) / "tree"

    def build(work: Path) -> None:
        cross_build(core, sysroot, work)

    product = cache.build("core-arm64", {"source": hash_tree(core), "sysroot": archive.key(packages)}, build)
    return next(product.rglob("*.so"))


def _wheel(name: str) -> Path:
    """The folder of a pure Python package of this environment."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise BuildError(f"the Python package {name} is not installed", hint="pip install vambrace's dependencies")
    return Path(next(iter(found.submodule_search_locations)))
