"""The guest that both VMMs boot: a Realm's image, and beside it an initrd that only switches the machine off."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from vambrace.attest.owner import OwnerIdentity
from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.initrd import cpio
from vambrace.emulator.build import LOCK_FILE
from vambrace.image.base import runtime_base
from vambrace.image.build import build_bundle
from vambrace.image.bundle import Bundle
from vambrace.realm import RealmConfig

MEMORY = {"system": "256M", "hello": "32M"}
OFF = "#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"


@dataclass(frozen=True)
class Guest:
    """``bundle`` as it is built for users; ``off`` is the other initrd."""

    bundle: Bundle
    off: bytes

    def configuration(self, percent: int) -> bytes:
        """The measured configuration with ``percent`` of every zone encrypted."""
        return at_percent(self.bundle.config, percent).encode()


def at_percent(config: RealmConfig, percent: int) -> RealmConfig:
    zones = tuple(zone.replace(percent=percent, follow=False) for zone in config.zones)
    changed: RealmConfig = config.replace(zones=zones)
    return changed


def build_guest(cache: Cache, work: Path) -> Guest:
    """A Realm with one small program, built in ``work``. Raises BuildError."""
    archive = Archive(cache.root / "archive", LOCK_FILE)
    base = runtime_base(archive, cache)
    OwnerIdentity.create(work / "owner")
    owner = OwnerIdentity.load(work / "owner")
    (work / "owner.pem").write_text(owner.certificate_pem)
    (work / "hello").mkdir()
    (work / "hello/hello.py").write_text("print('hello')\n")
    application = {"name": "hello", "files": "hello", "command": ["python3", "hello.py"], "percent": 50}
    manifest = {
        "name": "bench",
        "owner": "owner.pem",
        "system": {"memory": MEMORY["system"]},
        "applications": [application | {"memory": MEMORY["hello"]}],
    }
    (work / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    bundle = build_bundle(work / "manifest.yaml", work / "bench.vambrace", base)
    return Guest(bundle, _off(archive))


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
