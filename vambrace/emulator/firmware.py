"""The firmware's build recipe: OP-TEE with the trusted application, the stub that pins the host, trusted firmware.

Sources are Debian's, unchanged but for the files of ``firmware/`` that are laid beside them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vambrace.debian import tools
from vambrace.errors import BuildError

if TYPE_CHECKING:
    from fdt import FDT, Node

OURS = Path(__file__).parent.parent.parent / "firmware"
COMPILER = "aarch64-linux-gnu-"
JOBS = 2

#: A point in time for everything that wants to write one down (2026-01-01T00:00:00Z).
EPOCH = 1767225600

FLASH_SIZE = 64 << 20
FIP_OFFSET = 256 << 10

TA_NAME = "8b27ba22-915c-4834-b205-619451c0766a"

_OPTEE_PARTS = ("tee-header_v2.bin", "tee-pager_v2.bin", "tee-pageable_v2.bin")

#: Names in the boot event log (TF-A: include/drivers/measured_boot/metadata.h) and what is measured under them.
_COMPONENTS = (
    ("SECURE_RT_EL3", "bl31.bin"),
    ("SECURE_RT_EL1_OPTEE", "tee-header_v2.bin"),
    ("SECURE_RT_EL1_OPTEE_EXTRA1", "tee-pager_v2.bin"),
    ("SECURE_RT_EL1_OPTEE_EXTRA2", "tee-pageable_v2.bin"),
    ("BL_33", "stub.bin"),
)

_OPTEE_OPTIONS = {
    "PLATFORM": "vexpress-qemu_armv8a",
    "CFG_ARM64_core": "y",
    "CFG_USER_TA_TARGETS": "ta_arm64",
    "CFG_ARM_GICV3": "y",
    "CFG_CORE_TPM_EVENT_LOG": "y",
    "CFG_TEE_CORE_LOG_LEVEL": "1",
    "CFG_TEE_TA_LOG_LEVEL": "1",
    "CFG_TEE_CORE_DEBUG": "n",
    "CFG_WITH_STATS": "n",
    "CFG_ENABLE_EMBEDDED_TESTS": "n",
    "CFG_DT_DRIVER_EMBEDDED_TEST": "n",
    # A kernel of 35 MB would lie over the static shared memory; Linux registers its own instead.
    "CFG_CORE_RESERVED_SHM": "n",
    # Nothing here notifies the normal world, and the device tree need not name an interrupt for it.
    "CFG_CORE_ASYNC_NOTIF": "n",
    # No stubs: keys come from the fuse and random numbers from the processor, or not at all.
    "CFG_INSECURE": "n",
    "CFG_WITH_SOFTWARE_PRNG": "n",
    # The only application is the measured one: none from the normal world, whose signing key is public anyway.
    "CFG_EARLY_TA": "y",
    "CFG_REE_FS_TA": "n",
    "CFG_BUILD_IN_TREE_TA": "n",
    # Nothing is stored, so there is nothing that the normal world could roll back.
    "CFG_REE_FS": "n",
    "CFG_SECSTOR_TA": "n",
    "CFG_RPMB_FS": "n",
}


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


def signer_id(rot_key: Path | None) -> bytes:
    """Claim "signer" of every component: SHA-256 of the root-of-trust's public key (SubjectPublicKeyInfo DER).

    Zeros without a key: the signer is not stated. Raises BuildError.
    """
    if rot_key is None:
        return bytes(32)
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(rot_key.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise BuildError(f"{rot_key} is not an unencrypted PEM private key") from error
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).digest()


def build_optee(source: Path, out: Path, *, rot_key: Path | None = None) -> None:
    """OP-TEE from Debian's ``source`` with our platform files and trusted application, its binaries in ``out``.

    ``source`` is changed: our files are added. Raises BuildError, ToolMissing.
    """
    out = _fresh(out)
    platform = source / "core/arch/arm/plat-vexpress"
    if not (platform / "sub.mk").exists():
        raise BuildError(f"{source} is not OP-TEE's source")
    shutil.copytree(OURS / "optee", platform / "vambrace", dirs_exist_ok=True)
    shutil.copy(OURS / "common/vambrace_platform.h", platform / "vambrace")
    makefile = (platform / "sub.mk").read_text()
    if "subdirs-y += vambrace\n" not in makefile:
        (platform / "sub.mk").write_text(makefile.rstrip("\n") + "\nsubdirs-y += vambrace\n")

    work = out / "build"
    log = out / "optee.log"
    options = [f"{name}={value}" for name, value in _OPTEE_OPTIONS.items()]
    options += [f"CROSS_COMPILE{suffix}={COMPILER}" for suffix in ("", "64", "_core", "_ta_arm64")]
    options.append(f"O={work.resolve()}")
    _make(source, [*options, "ta_dev_kit"], log)

    application = out / "application"
    shutil.copytree(OURS, application, ignore=shutil.ignore_patterns("optee", "stub", "tests"))
    signer = ",".join(f"{byte:#04x}" for byte in signer_id(rot_key))
    kit = work.resolve() / "export-ta_arm64"
    _make(
        application / "ta",
        [f"CROSS_COMPILE={COMPILER}", f"TA_DEV_KIT_DIR={kit}", f"VAMBRACE_SIGNER_ID={signer}"],
        log,
    )
    elf = (application / "ta" / f"{TA_NAME}.stripped.elf").resolve()
    _make(source, [*options, f"EARLY_TA_PATHS={elf}", "all"], log)
    for name in _OPTEE_PARTS:
        shutil.copy(work / "core" / name, out / name)
    shutil.rmtree(work)
    shutil.rmtree(application)


def build_stub(kernel: Path, initrd: Path, dtb: Path, out: Path) -> None:
    """``out``/stub.bin: the stub that starts exactly these three files and no others. Raises BuildError."""
    out = _fresh(out)
    room = {
        "kernel": (kernel, DTB_ADDRESS - KERNEL_ADDRESS),
        "initrd": (initrd, STUB_ADDRESS - INITRD_ADDRESS),
        # Linux maps the device tree with one 2 MiB block.
        "dtb": (dtb, 2 << 20),
    }
    lines = ["/* Generated: the host that this stub starts. */"]
    for name, (file, limit) in room.items():
        content = file.read_bytes()
        needed = _kernel_footprint(content) if name == "kernel" else len(content)
        if not content or needed > limit:
            raise BuildError(f"{file} needs {needed} bytes; the stub has room for 1 to {limit}")
        digest = ", ".join(f"{byte:#04x}" for byte in hashlib.sha256(content).digest())
        lines += [
            f"#define {name.upper()}_LENGTH {len(content)}UL",
            f"#define {name.upper()}_DIGEST {digest}",
        ]
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
        *(f"-ffile-prefix-map={OURS}=firmware", f"-I{out}", "-T", str(here / "stub.ld")),
    ]
    sources = [str(here / name) for name in ("start.S", "main.c", "sha256.c")]
    tools.run([f"{COMPILER}gcc", *flags, *sources, "-o", elf])
    tools.run([f"{COMPILER}objcopy", "-O", "binary", "-j", ".text", "-j", ".rodata", elf, out / "stub.bin"])
    elf.unlink()


def build_tfa(source: Path, mbedtls_source: Path, optee_out: Path, stub: Path, rot_key: Path, out: Path) -> None:
    """Trusted firmware with trusted and measured boot around ``optee_out`` and ``stub``, signed by ``rot_key`` (PEM).

    Raises BuildError, ToolMissing.
    """
    out = _fresh(out)
    work = out / "build"
    options = [
        *("PLAT=qemu", "SPD=opteed", "DEBUG=0", "E=0", "LOG_LEVEL=20"),
        *("BL32_RAM_LOCATION=tdram", "QEMU_USE_GIC_DRIVER=QEMU_GICV3"),
        *("MEASURED_BOOT=1", "EVENT_LOG_LEVEL=20", "TRUSTED_BOARD_BOOT=1", "GENERATE_COT=1"),
        *(
            f"MBEDTLS_DIR={mbedtls_source.resolve()}",
            f"ROT_KEY={rot_key.resolve()}",
            f"KEY_ALG={_algorithm(rot_key)}",
        ),
        *(
            f"{name}={(optee_out / part).resolve()}"
            for name, part in zip(("BL32", "BL32_EXTRA1", "BL32_EXTRA2"), _OPTEE_PARTS, strict=True)
        ),
        f"BL33={stub.resolve()}",
        f"CROSS_COMPILE={COMPILER}",
        f"BUILD_BASE={work.resolve()}",
        'BUILD_MESSAGE_TIMESTAMP="vambrace"',
        "BUILD_STRING=vambrace",
    ]
    _make(source, [*options, "all", "fip"], out / "tfa.log")
    for name in ("bl1.bin", "bl31.bin", "fip.bin"):
        shutil.copy(work / "qemu/release" / name, out / name)
    for name in _OPTEE_PARTS:
        shutil.copy(optee_out / name, out / name)
    shutil.copy(stub, out / "stub.bin")
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


def component_digests(out: Path) -> list[tuple[str, str]]:
    """(name, SHA-256 in hex) of everything in the boot event log, in its order, from ``build_tfa``'s ``out``."""
    contents = [(name, (out / file).read_bytes()) for name, file in _COMPONENTS]
    # An image of length zero (OP-TEE without a pager has no pageable part) is not loaded, so not measured.
    return [(name, hashlib.sha256(content).hexdigest()) for name, content in contents if content]


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


def _make(directory: Path, arguments: Iterable[str], log: Path) -> None:
    environment = {
        # Debian's own Python has what OP-TEE's scripts import; another one that comes first in PATH may not.
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "TZ": "UTC",
        # A make around this one must not lend its options.
        "MAKEFLAGS": "",
        "MFLAGS": "",
    }
    tools.run(["make", f"-j{JOBS}", "-C", directory, *arguments], env=environment, log=log)


def _fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out
