"""The firmware's build recipe: the stub that pins the host, and trusted firmware around it and OP-TEE (``optee.py``).

Sources are Debian's, unchanged but for the files of ``firmware/`` that are laid beside them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vambrace.debian import tools
from vambrace.emulator import optee
from vambrace.emulator.sources import COMPILER, OURS, fresh, lay_beside, make
from vambrace.errors import BuildError

if TYPE_CHECKING:
    from fdt import FDT, Node

FLASH_SIZE = 64 << 20
FIP_OFFSET = 256 << 10

#: Names in the token, and the file of ``build_tfa`` that is measured under each. Those of the boot event log are TF-A's
#: (include/drivers/measured_boot/metadata.h), others those of firmware/optee/components.c; in the order of the boot.
_COMPONENTS = (
    ("BL_1", "rom.bin"),
    ("BL_2", "bl2.bin"),
    ("SECURE_RT_EL3", "bl31.bin"),
    ("SECURE_RT_EL1_OPTEE", "tee-header_v2.bin"),
    ("SECURE_RT_EL1_OPTEE_EXTRA1", "tee-pager_v2.bin"),
    ("SECURE_RT_EL1_OPTEE_EXTRA2", "tee-pageable_v2.bin"),
    ("BL_33", "stub.bin"),
    ("VAMBRACE_TA", "application.elf"),
)
_KEY_ROLES = ("ROT_KEY", "TRUSTED_WORLD_KEY", "NON_TRUSTED_WORLD_KEY", "BL31_KEY", "BL32_KEY", "BL33_KEY")
_HOST_PARTS = ("HOST_DEVICE_TREE", "HOST_KERNEL", "HOST_INITRD", "HOST_ROOT")



def _defined(header: str, name: str, value: str) -> str:
    """What ``header`` of firmware/ defines ``name`` as: the group of the pattern ``value``."""
    found = re.search(rf"^#define {name} {value}$", (OURS / header).read_text(), re.MULTILINE)
    if found is None:
        raise BuildError(f"{name} is not in firmware/{header}")
    return found[1]


def _address(name: str) -> int:
    return int(_defined("stub/layout.h", name, "(0x[0-9a-f]+)"), 16)


KERNEL_ADDRESS = _address("KERNEL_ADDRESS")
DTB_ADDRESS = _address("DTB_ADDRESS")
INITRD_ADDRESS = _address("INITRD_ADDRESS")
STUB_ADDRESS = _address("STUB_ADDRESS")

#: Claim 2396 of every token of this platform.
IMPLEMENTATION_ID = hashlib.sha256(
    _defined("common/vambrace_platform.h", "IMPLEMENTATION", '"([ -!#-~]+)"').encode()
).digest()


def root_key_hash(rot_key: Path) -> bytes:
    """SHA-256 of the root-of-trust's public key (SubjectPublicKeyInfo DER): in the fuse, and claim "signer" of every
    component. Raises BuildError.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(rot_key.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise BuildError(f"{rot_key} is not an unencrypted PEM private key") from error
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).digest()


@dataclass(frozen=True)
class HostFiles:
    """What the stub pins. ``root_hash`` (32 bytes) is that of the root's dm-verity tree, as the command line has it."""

    kernel: Path
    initrd: Path
    dtb: Path
    root_hash: bytes

    def components(self) -> list[tuple[str, str]]:
        """(name, SHA-256 in hex) of each part, in the order in which the stub measures them."""
        files = (self.dtb, self.kernel, self.initrd)
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return list(zip(_HOST_PARTS, [*digests, self.root_hash.hex()], strict=True))


def build_stub(host: HostFiles, out: Path) -> None:
    """``out``/stub.bin: the stub that starts exactly these files and no others. Raises BuildError."""
    out = fresh(out)
    room = {
        "kernel": (host.kernel, DTB_ADDRESS - KERNEL_ADDRESS),
        "initrd": (host.initrd, STUB_ADDRESS - INITRD_ADDRESS),
        # Linux maps the device tree with one 2 MiB block.
        "dtb": (host.dtb, 2 << 20),
    }
    lines = ["/* Generated: the host that this stub starts. */"]
    for name, (file, limit) in room.items():
        content = file.read_bytes()
        needed = _kernel_footprint(content) if name == "kernel" else len(content)
        if not content or needed > limit:
            raise BuildError(f"{file} needs {needed} bytes; the stub has room for 1 to {limit}")
        lines += [
            f"#define {name.upper()}_LENGTH {len(content)}UL",
            f"#define {name.upper()}_DIGEST {_c_bytes(hashlib.sha256(content).digest())}",
        ]
    lines.append(f"#define ROOT_DIGEST {_c_bytes(host.root_hash)}")
    (out / "pinned.h").write_text("\n".join(lines) + "\n")

    here = OURS / "stub"
    elf = out / "stub.elf"
    flags = [
        *(
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-std=c11",
            "-ffreestanding",
            "-nostdlib",
            "-static",
            "-no-pie",
        ),
        *("-fno-pic", "-fno-stack-protector", "-fno-builtin", "-fno-tree-loop-distribute-patterns"),
        *(
            "-fno-asynchronous-unwind-tables",
            "-march=armv8-a+crypto",
            "-mstrict-align",
            "-mno-outline-atomics",
        ),
        *(
            "-Wl,--build-id=none",
            "-Wl,-z,max-page-size=4096",
            "-Wl,-n",
            f"-Wl,--defsym=STUB_ADDRESS={STUB_ADDRESS}",
        ),
        *(f"-ffile-prefix-map={OURS}=firmware", f"-I{out}", f"-I{OURS / 'common'}", "-T", str(here / "stub.ld")),
    ]
    sources = [str(here / name) for name in ("start.S", "main.c", "sha256.c")]
    tools.run([f"{COMPILER}gcc", *flags, *sources, "-o", elf])
    tools.run([f"{COMPILER}objcopy", "-O", "binary", "-j", ".text", "-j", ".rodata", elf, out / "stub.bin"])
    elf.unlink()


@dataclass(frozen=True)
class Versions:
    """How old a build is, for the fuse: whoever has started a higher one never starts a lower one again.

    ``firmware`` is that of everything below the host, ``host`` that of the stub and so of all that it pins. They are
    raised when an older build must not run any more, because of a hole in it, and not otherwise.
    """

    firmware: int = 1
    host: int = 1


VERSIONS = Versions()


def build_tfa(
    source: Path,
    mbedtls_source: Path,
    optee_out: Path,
    stub: Path,
    rot_key: Path,
    out: Path,
    versions: Versions = VERSIONS,
) -> None:
    """Trusted firmware with trusted and measured boot around ``optee_out`` and ``stub``, signed by ``rot_key`` (PEM).

    The same sources give the same bits of everything that runs, wherever and whenever and whoever signs. Certificates
    differ: their signatures are salted, and they are dated. ``source`` is changed. Raises BuildError, ToolMissing.
    """
    out = fresh(out)
    work = out / "build"
    lay_beside(source / "plat/qemu/qemu/platform.mk", "tfa", "include plat/qemu/vambrace/vambrace.mk", up=1)
    options = [
        *("PLAT=qemu", "SPD=opteed", "DEBUG=0", "E=0", "LOG_LEVEL=20"),
        *("BL32_RAM_LOCATION=tdram", "QEMU_USE_GIC_DRIVER=QEMU_GICV3"),
        *("MEASURED_BOOT=1", "EVENT_LOG_LEVEL=20", "TRUSTED_BOARD_BOOT=1", "GENERATE_COT=1"),
        *(f"TFW_NVCTR_VAL={versions.firmware}", f"NTFW_NVCTR_VAL={versions.host}"),
        f"MBEDTLS_DIR={mbedtls_source.resolve()}",
        # One key for all roles, so that certificates of all builds are of one chain: what keeps an old one out is its
        # version and not chance.
        *(f"{role}={rot_key.resolve()}" for role in _KEY_ROLES),
        f"KEY_ALG={_algorithm(rot_key)}",
        *(
            f"{name}={(optee_out / part).resolve()}"
            for name, part in zip(("BL32", "BL32_EXTRA1", "BL32_EXTRA2"), optee.PARTS, strict=True)
        ),
        f"BL33={stub.resolve()}",
        f"CROSS_COMPILE={COMPILER}",
        f"BUILD_BASE={work.resolve()}",
        'BUILD_MESSAGE_TIMESTAMP="vambrace"',
        "BUILD_STRING=vambrace",
    ]
    make(source, [*options, "all", "fip"], out / "tfa.log")
    for name in ("bl1.bin", "bl2.bin", "bl31.bin", "fip.bin"):
        shutil.copy(work / "qemu/release" / name, out / name)
    for name in (*optee.PARTS, "application.elf"):
        shutil.copy(optee_out / name, out / name)
    shutil.copy(stub, out / "stub.bin")
    # What is measured of a ROM is all of it.
    (out / "rom.bin").write_bytes((out / "bl1.bin").read_bytes().ljust(FIP_OFFSET, b"\0"))
    shutil.rmtree(work)


def describe_secure_world(tree: FDT) -> None:
    """Complete QEMU's device tree with what the firmware offers.

    TF-A and OP-TEE add these nodes to the tree that they find at the start of memory. Linux gets the pinned one
    instead, which nobody changes, so it must have them from the start. The same file serves both: what TF-A
    finds it does not add again.
    """
    import fdt

    psci = tree.get_node("/psci") if tree.exist_node("/psci") else _append(tree.root, fdt.Node("psci"))
    psci.set_property("compatible", ["arm,psci-1.0", "arm,psci-0.2"])
    psci.set_property("method", "smc")
    for cpu in tree.get_node("/cpus").nodes:
        if re.fullmatch(r"cpu@[0-9a-f]+", cpu.name):
            cpu.set_property("enable-method", "psci")
    firmware = tree.get_node("/firmware") if tree.exist_node("/firmware") else _append(tree.root, fdt.Node("firmware"))
    optee = _append(firmware, fdt.Node("optee"))
    optee.set_property("compatible", "linaro,optee-tz")
    optee.set_property("method", "smc")
    if not tree.exist_node("/tpm@0"):
        # BL2's measured boot wants this node even where there is no TPM behind it.
        tpm = _append(tree.root, fdt.Node("tpm@0"))
        tpm.set_property("compatible", "tcg,tpm-tis-mmio")
        tpm.set_property("reg", [0, 0, 0, 0])
        tpm.set_property("status", "disabled")


def flash_image(tfa_out: Path) -> bytes:
    """Secure flash bank 0 (64 MiB) with BL1 and the firmware package, without a fuse. Raises BuildError."""
    bl1, fip = ((tfa_out / name).read_bytes() for name in ("bl1.bin", "fip.bin"))
    if len(bl1) > FIP_OFFSET or FIP_OFFSET + len(fip) > FLASH_SIZE - (1 << 20):
        raise BuildError("the firmware does not fit into the flash beside the fuse")
    image = bytearray(FLASH_SIZE)
    image[: len(bl1)] = bl1
    image[FIP_OFFSET : FIP_OFFSET + len(fip)] = fip
    return bytes(image)


def component_digests(out: Path, host: HostFiles) -> list[tuple[str, str]]:
    """(name, SHA-256 in hex) of every component of a token, in its order, from ``build_tfa``'s ``out``."""
    contents = [(name, (out / file).read_bytes()) for name, file in _COMPONENTS]
    # An image of length zero (OP-TEE without a pager has no pageable part) is not loaded, so not measured.
    digests = [(name, hashlib.sha256(content).hexdigest()) for name, content in contents if content]
    return digests + host.components()


def _c_bytes(data: bytes) -> str:
    return ", ".join(f"{byte:#04x}" for byte in data)


def _append(parent: Node, child: Node) -> Node:
    parent.append(child)
    return child


def _algorithm(rot_key: Path) -> str:
    """TF-A's name of the key's algorithm."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    key = serialization.load_pem_private_key(rot_key.read_bytes(), None)
    if isinstance(key, rsa.RSAPrivateKey):
        return "rsa"
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return "ecdsa"
    raise BuildError(f"{rot_key} must be an RSA or ECDSA P-256 key")


def _kernel_footprint(image: bytes) -> int:
    """Bytes of memory from the Image's start that it uses (Linux Documentation/arch/arm64/booting.rst)."""
    if image[56:60] != b"ARM\x64":
        raise BuildError("the kernel is not an uncompressed arm64 Image")
    return max(len(image), int.from_bytes(image[16:24], "little"))
