"""OP-TEE's build recipe, with our platform files and the trusted application in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from vambrace.emulator.sources import COMPILER, OURS, fresh, lay_beside, make

TA_NAME = "8b27ba22-915c-4834-b205-619451c0766a"

#: What boot firmware loads of it, in this order.
PARTS = ("tee-header_v2.bin", "tee-pager_v2.bin", "tee-pageable_v2.bin")

_OPTIONS = {
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
    # Measured by itself as well: as its file is, not as some version of zlib would pack it.
    "CFG_EARLY_TA_COMPRESS": "n",
    "CFG_REE_FS_TA": "n",
    "CFG_BUILD_IN_TREE_TA": "n",
    # Nothing is stored, so there is nothing that the normal world could roll back.
    "CFG_REE_FS": "n",
    "CFG_SECSTOR_TA": "n",
    "CFG_RPMB_FS": "n",
}


def build_optee(source: Path, out: Path) -> None:
    """OP-TEE from Debian's ``source`` with our platform files and trusted application, its binaries in ``out``.

    ``source`` is changed: our files are added. The same sources give the same bits, wherever and whenever.
    Raises BuildError, ToolMissing.
    """
    out = fresh(out)
    lay_beside(source / "core/arch/arm/plat-vexpress/sub.mk", "optee", "subdirs-y += vambrace")
    work = out / "build"
    log = out / "optee.log"
    options = [f"{name}={value}" for name, value in _OPTIONS.items()]
    options += [f"CROSS_COMPILE{suffix}={COMPILER}" for suffix in ("", "64", "_core", "_ta_arm64")]
    options.append(f"O={work.resolve()}")
    make(source, [*options, "ta_dev_kit"], log)

    application = out / "application"
    shutil.copytree(OURS, application, ignore=shutil.ignore_patterns("optee", "stub", "tests", "tfa"))
    kit = work.resolve() / "export-ta_arm64"
    make(application / "ta", [f"CROSS_COMPILE={COMPILER}", f"TA_DEV_KIT_DIR={kit}"], log)
    elf = (application / "ta" / f"{TA_NAME}.stripped.elf").resolve()
    make(source, [*options, f"EARLY_TA_PATHS={elf}", "all"], log)
    for name in PARTS:
        shutil.copy(work / "core" / name, out / name)
    shutil.copy(elf, out / "application.elf")
    shutil.rmtree(work)
    shutil.rmtree(application)
