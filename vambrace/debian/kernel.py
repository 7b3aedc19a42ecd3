"""Debian's arm64 cloud kernel and its modules."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from vambrace.debian import root, tools
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.errors import BuildError


@dataclass(frozen=True)
class Kernel:
    """``image`` is the arm64 Image file; ``modules`` is the folder of ``version``, decompressed, with modules.dep."""

    version: str
    image: Path
    modules: Path

    def closure(self, names: list[str]) -> list[Path]:
        """Files to load, in an order that respects dependencies. What is built in is passed over.

        Raises BuildError for a name that the kernel does not have.
        """
        dependencies: dict[str, list[str]] = {}
        by_name: dict[str, str] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needed = line.partition(":")
            dependencies[path] = needed.split()
            by_name[_module_name(path)] = path
        builtin = {_module_name(line) for line in (self.modules / "modules.builtin").read_text().splitlines()}
        order: list[str] = []

        def add(path: str) -> None:
            if path not in order:
                for needed in dependencies[path]:
                    add(needed)
                order.append(path)

        for name in names:
            key = name.replace("-", "_")
            if key in by_name:
                add(by_name[key])
            elif key not in builtin:
                raise BuildError(f"kernel {self.version} has no module {name}")
        return [self.modules / path for path in order]


def _module_name(path: str) -> str:
    return re.sub(r"\.ko(\.xz|\.zst)?$", "", Path(path).name).replace("-", "_")


def kernel(archive: Archive, cache: Cache) -> Kernel:
    """The kernel of the lock, unpacked in the cache. Raises BuildError."""
    packages = [
        package
        for package in archive.binaries("kernel", ["linux-image-cloud-arm64"])
        if re.match(r"linux-image-\d", package.name)
    ]

    def build(work: Path) -> None:
        tree = work / "tree"
        root.unpack(archive.fetch(packages), tree)
        version = _version(tree)
        modules = tree / "usr/lib/modules" / version
        for compressed in modules.rglob("*.ko.xz"):
            compressed.with_suffix("").write_bytes(lzma.decompress(compressed.read_bytes()))
            compressed.unlink()
        tools.run(["depmod", "-b", tree, version])

    tree = cache.build("kernel", {"packages": archive.key(packages), "recipe": "1"}, build) / "tree"
    version = _version(tree)
    return Kernel(version, tree / "boot" / f"vmlinuz-{version}", tree / "usr/lib/modules" / version)


def _version(tree: Path) -> str:
    images = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise BuildError("the kernel package holds no single kernel")
    return images[0].name.removeprefix("vmlinuz-")
