"""The bundle of a Normal VM: kernel, initrd and disks as they are; nothing of it is measured or signed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from vambrace.application import SYSTEM
from vambrace.config import BLOCK, PAGE, PIN_HEADROOM, Disk, DomainConfig, Zone
from vambrace.debian.system import System, make_ext4
from vambrace.errors import ConfigError
from vambrace.image.bundle import Bundle, check_output, write_bundle
from vambrace.image.manifest import NormalManifest
from vambrace.machine.plan import plan_boot


def build_normal(manifest: NormalManifest, out: Path, system: System | None) -> Bundle:
    """Build the image that ``manifest`` describes into ``out``; ``system`` is the stock one, if it asks for that.

    Raises ``ConfigError``, ``ImageError``, ``BuildError`` (``ToolMissing``, ``NoSpace``).
    """
    check_output(out)
    work = Path(tempfile.mkdtemp(prefix=".vambrace-", dir=out.parent))
    try:
        kernel, initrd, disks = manifest.kernel, manifest.initrd, list(manifest.disks)
        if kernel is None or initrd is None:
            assert system is not None
            kernel, initrd, disks = system.kernel, system.initrd, [work / "root.ext4"]
            make_ext4([system.tree, *([manifest.files] if manifest.files else [])], disks[0])
        # Nothing is encrypted, so its devices may reach all of it but what no window lets go.
        pins = manifest.memory - PIN_HEADROOM * PAGE if manifest.devices else 0
        words = [manifest.cmdline, *(["deferred_probe_timeout=-1"] if manifest.devices else [])]
        config = DomainConfig(
            kind=manifest.kind,
            name=manifest.name,
            cmdline=" ".join(words),
            vcpus=manifest.vcpus,
            zones=(Zone(SYSTEM, manifest.memory, 0, pins=pins),),
            disks=tuple(_disk(path) for path in disks),
            cache=manifest.cache,
            networks=manifest.networks,
            devices=manifest.devices,
        )
        plan_boot(config, kernel.read_bytes(), initrd.read_bytes())
        return write_bundle(out, config, kernel, initrd, disks)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _disk(path: Path) -> Disk:
    size = path.stat().st_size
    if size % BLOCK:
        raise ConfigError(f"{path}: {size} bytes are not whole blocks of {BLOCK}", hint="make the file longer")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Disk(path.stem, digest, size)
