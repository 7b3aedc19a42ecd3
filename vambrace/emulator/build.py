"""Everything the emulated server boots from, built into the cache.

``build`` is a pure function of Debian's locked packages, this source tree and the vendor's root-of-trust key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vambrace.debian.archive import UNSTABLE, Archive
from vambrace.debian.cache import Cache, hash_tree
from vambrace.emulator import devicetree, firmware, hostroot, optee
from vambrace.emulator import sources as laid_beside
from vambrace.emulator.firmware import VERSIONS, HostFiles, Versions
from vambrace.emulator.hostroot import PRODUCT, HostImage, Variant
from vambrace.suite import NIST, Suite

Progress = Callable[[str], None]
LOCK_FILE = Path(__file__).parent.parent / "debian/packages.lock"
_OURS, _LAID = laid_beside.OURS, Path(laid_beside.__file__)

HOST_SETTINGS = """\
# The host daemon's settings, part of the measured root.
certificate = "/state/api/server.pem"
key = "/state/api/server.key"
client_ca = "/state/api/clients.pem"
state = "/state/host"
endorsement = "/state/endorsement.pem"
vendor_root = "/etc/vambrace/vendor-root.pem"
port = 8443
guest_memory = 2147483648
# Domains have this processor, the host's own work the other. It is the only one, so domains share it; what stands in
# vmm_cpus and not in shared_cpus is given to one domain alone.
vmm_cpus = [1]
shared_cpus = [1]
# Bridges within the server: whoever names the first reaches the others there, whoever names the second reaches nobody.
networks = {lab = {bridge = "lab", isolated = false}, apart = {bridge = "apart"}}
# Realms may have a key broker there: it is a port of the machine outside (see Server).
brokers = ["10.0.2.100:8444"]
# Domains may have the NVMe disk and the network card, where the server has them ('server up --devices').
pci_devices = ["1b36:0010", "1af4:1041"]
"""


@dataclass(frozen=True)
class Firmware:
    """The secure flash's firmware part, and what tokens will say of it. ``signer`` is the root-of-trust key's hash."""

    image: Path
    device_tree: Path
    components: tuple[tuple[str, str], ...]
    signer: bytes


@dataclass(frozen=True)
class ServerBuild:
    """``firmware`` is None for a server without TrustZone, which can be had by explicit choice only."""

    host: HostImage
    firmware: Firmware | None


def build(
    cache: Cache,
    progress: Progress,
    *,
    rot_key: Path | None,
    vendor_root: bytes,
    insecure: bool = False,
    suite: Suite = NIST,
    newer: bool = False,
    variant: Variant = PRODUCT,
    versions: Versions = VERSIONS,
) -> ServerBuild:
    """Build what is not in the cache. ``rot_key`` signs the firmware's certificates; ``vendor_root`` (PEM) is the
    authority whose endorsement the host takes; ``suite`` is the host's.

    Raises BuildError, ToolMissing.
    """
    archive = Archive(cache.root / "archive", LOCK_FILE, newer=newer)
    progress("the host's root: Debian packages and vambrace")
    settings = HOST_SETTINGS + ('insecure = "no-trustzone"\n' if insecure else "")
    settings += "" if suite == NIST else f'suite = "{suite.name}"\n'
    host = hostroot.build_host(archive, cache, settings, vendor_root, variant)
    if insecure or rot_key is None:
        return ServerBuild(host, None)
    return ServerBuild(host, _firmware(archive, cache, progress, host, rot_key, versions))


def _firmware(
    archive: Archive, cache: Cache, progress: Progress, host: HostImage, rot_key: Path, versions: Versions
) -> Firmware:
    progress("OP-TEE with the trusted application")
    secure_world = _secure_world(archive, cache)
    progress("the device tree and the stub that pins the host")
    dtb = _device_tree(cache, host)
    progress("trusted firmware")
    files = HostFiles(host.kernel.image, host.initrd, dtb, bytes.fromhex(host.verity.verity_root))
    product = _trusted_firmware(archive, cache, files, secure_world, rot_key, versions)
    components = tuple(firmware.component_digests(product / "out", files))
    return Firmware(product / "flash.img", dtb, components, firmware.root_key_hash(rot_key))


def _secure_world(archive: Archive, cache: Cache) -> Path:
    """The folder with OP-TEE's parts."""
    packages = archive.source("optee", "optee-os", UNSTABLE)

    def build_optee(work: Path) -> None:
        optee.build_optee(archive.unpack_source(packages, work / "source"), work / "out")

    inputs = {
        "optee": archive.key(packages),
        "ours": hash_tree(_OURS / "ta", _OURS / "optee", _OURS / "common"),
        "recipe": hash_tree(Path(optee.__file__), _LAID),
    }
    return cache.build("optee", inputs, build_optee) / "out"


def _device_tree(cache: Cache, host: HostImage) -> Path:
    """The host's, with its command line and where its initrd is."""
    initrd_size = host.initrd.stat().st_size

    def build_tree(work: Path) -> None:
        devicetree.make(work / "host.dtb", host.cmdline(), initrd_size)

    inputs = {
        "cmdline": host.cmdline(),
        "initrd": str(initrd_size),
        "recipe": hash_tree(Path(devicetree.__file__), Path(devicetree.__file__).with_name("qemu.py")),
        "qemu": devicetree.qemu_version(),
    }
    return cache.build("device-tree", inputs, build_tree) / "host.dtb"


def _trusted_firmware(
    archive: Archive, cache: Cache, files: HostFiles, secure_world: Path, rot_key: Path, versions: Versions
) -> Path:
    """The folder with ``flash.img``, and TF-A's parts in ``out``: its last one is the stub, which starts ``files`` and
    nothing else."""
    packages = archive.source("arm-trusted-firmware", "arm-trusted-firmware")
    mbedtls_packages = archive.source("mbedtls", "mbedtls")

    def build_tfa(work: Path) -> None:
        firmware.build_stub(files, work / "stub")
        source = archive.unpack_source(packages, work / "source")
        mbedtls = archive.unpack_source(mbedtls_packages, work / "mbedtls")
        firmware.build_tfa(source, mbedtls, secure_world, work / "stub/stub.bin", rot_key, work / "out", versions)
        (work / "flash.img").write_bytes(firmware.flash_image(work / "out"))

    inputs = {
        "tfa": archive.key(packages),
        "mbedtls": archive.key(mbedtls_packages),
        "optee": hash_tree(secure_world),
        "ours": hash_tree(_OURS / "stub", _OURS / "tfa", _OURS / "common"),
        "kernel": hash_tree(files.kernel),
        "initrd": hash_tree(files.initrd),
        "dtb": hash_tree(files.dtb),
        "root": files.root_hash.hex(),
        "versions": repr(versions),
        "rot_key": hashlib.sha256(rot_key.read_bytes()).hexdigest(),
        "recipe": hash_tree(Path(firmware.__file__), _LAID),
    }
    return cache.build("firmware", inputs, build_tfa)
