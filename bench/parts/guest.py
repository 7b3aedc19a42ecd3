"""The guests that both VMMs boot: a Realm's image, beside it an initrd that only switches the machine off, and an
image whose application does the work of a benchmark, without an agent."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.parts import driver
from vambrace.attest.owner import OwnerIdentity
from vambrace.config import DomainConfig
from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.initrd import cpio
from vambrace.emulator.build import LOCK_FILE
from vambrace.image.base import runtime_base
from vambrace.image.build import build_bundle
from vambrace.image.bundle import Bundle

MEMORY = {"system": "256M", "hello": "32M", "worker": "64M"}
WORK = f"#!/bin/busybox sh\nexec /usr/bin/{shlex.join(driver.command('boot', Path('/app/worker')))}\n"
OFF = "#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"


@dataclass(frozen=True)
class Guest:
    """``bundle`` as it is built for users; ``off`` is the other initrd."""

    bundle: Bundle
    off: bytes

    def configuration(self, percent: int) -> bytes:
        """The measured configuration with ``percent`` of every zone encrypted."""
        return at_percent(self.bundle.config, percent, percent).encode()


def at_percent(config: DomainConfig, *percents: int) -> DomainConfig:
    """The configuration with a percentage for each zone."""
    pairs = zip(config.zones, percents, strict=True)
    zones = tuple(zone.replace(percent=percent, follow=False) for zone, percent in pairs)
    changed: DomainConfig = config.replace(zones=zones)
    return changed


def build_guest(cache: Cache, work: Path) -> Guest:
    """A Realm with one small program, built in ``work``, a new folder. Raises BuildError."""
    archive = Archive(cache.root / "archive", LOCK_FILE)
    program = work / "hello"
    program.mkdir(parents=True)
    (program / "hello.py").write_text("print('hello')\n")
    return Guest(_bundle(archive, cache, program), _off(archive))


def build_worker(cache: Cache, work: Path) -> Bundle:
    """An image with the driver and a zone for it, built in ``work``, a new folder. Raises BuildError."""
    program = work / "worker"
    parts = program / "bench/parts"
    parts.mkdir(parents=True)
    for name in driver.FILES:
        shutil.copyfile(Path(driver.__file__).with_name(name), parts / name)
    (program / "init").write_text(WORK)
    (program / "init").chmod(0o755)
    return _bundle(Archive(cache.root / "archive", LOCK_FILE), cache, program)


def without_agent(config: DomainConfig) -> DomainConfig:
    """The worker's configuration, in which ``driver.py`` takes the agent's place: no manifest can say that."""
    words = [word for word in config.cmdline.split() if not word.startswith("vambrace.init=")]
    changed: DomainConfig = config.replace(cmdline=" ".join([*words, "vambrace.init=/app/worker/init"]))
    return changed


def _bundle(archive: Archive, cache: Cache, program: Path) -> Bundle:
    """An image whose application is the folder ``program``, built beside that."""
    work = program.parent
    base = runtime_base(archive, cache)
    OwnerIdentity.create(work / "owner")
    owner = OwnerIdentity.load(work / "owner")
    (work / "owner.pem").write_text(owner.certificate_pem)
    name = program.name
    application = {"name": name, "files": name, "command": ["python3", f"{name}.py"], "percent": 50}
    manifest = {
        "name": "bench",
        "owner": "owner.pem",
        "system": {"memory": MEMORY["system"]},
        "applications": [application | {"memory": MEMORY[name]}],
    }
    (work / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return build_bundle(work / "manifest.yaml", work / "bench.vambrace", base)


def _off(archive: Archive) -> bytes:
    """An initrd of the shell alone, of the same package as the Realm's."""
    packages = archive.binaries("initrd", ("busybox-static",))
    with tempfile.TemporaryDirectory() as work:
        root.unpack(archive.fetch([p for p in packages if p.name == "busybox-static"]), Path(work) / "packages")
        tree = Path(work) / "tree"
        (tree / "bin").mkdir(parents=True)
        (tree / "bin/busybox").write_bytes((Path(work) / "packages/usr/bin/busybox").read_bytes())
        (tree / "init").write_text(OFF)
        for program in ("bin/busybox", "init"):
            (tree / program).chmod(0o755)
        return cpio(tree)
