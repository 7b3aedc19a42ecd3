"""From a manifest to a bundle: the same inputs give the same bits."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from vambrace.canonical import canonical
from vambrace.config import SYSTEM_DISK
from vambrace.debian.erofs import VerityDisk, make_erofs
from vambrace.errors import BuildError, ConfigError, NoSpace
from vambrace.image import python
from vambrace.image.base import RuntimeBase
from vambrace.image.bundle import Bundle, check_output, write_bundle
from vambrace.image.configuration import FILES, SETTINGS, agent_settings, encrypted_disks, make_config
from vambrace.image.containers.program import settle
from vambrace.image.encrypted import encrypt_disk, obtain_key
from vambrace.image.manifest import Manifest, Program, read_manifest
from vambrace.image.programs import check_program
from vambrace.image.stage import stage
from vambrace.image.systems.system import build_system
from vambrace.image.systems.units import check_units
from vambrace.machine.plan import plan_boot


@dataclass
class _Disks:
    """Those behind base and apps, in their order, by name: each one's file, and what is known of it."""

    paths: dict[str, Path] = field(default_factory=dict)
    verity: dict[str, VerityDisk] = field(default_factory=dict)

    def add(self, name: str, path: Path, verity: VerityDisk) -> None:
        self.paths[name], self.verity[name] = path, verity


def build_bundle(
    manifest: Manifest | Path,
    out_path: Path,
    base: RuntimeBase,
    environments: Mapping[str, Path] = MappingProxyType({}),
) -> Bundle:
    """Build the application image that ``manifest``, or that at this path, describes on ``base`` into ``out_path``;
    ``environments`` are virtual environments of applications in Python, by name (``prepare``).

    Raises ``ConfigError`` for a wrong manifest, ``ImageError`` and ``BuildError`` (``ToolMissing``, ``NoSpace``).
    """
    if isinstance(manifest, Path):
        manifest = read_attested_manifest(manifest)
    if any(program.container for program in manifest.programs) and not base.containers:
        raise BuildError("this base runs no containers", hint="see vambrace.image.prepare")
    if manifest.vm and not base.systems:
        raise BuildError("this base runs no system of a disk", hint="see vambrace.image.prepare")
    out_path = Path(out_path)
    check_output(out_path)
    with _workplace(out_path) as work:
        tree, disks = work / "tree", _Disks()
        tree.mkdir()
        manifest = _settle(manifest, work, disks)
        for number, program in enumerate(manifest.programs):
            if not program.container and not manifest.vm:
                own = work / FILES.format(number) if program.key else None
                _put_program(program, tree, own, base, environments, disks)
        for name, resource in encrypted_disks(manifest).items():
            key = obtain_key(key_file(out_path, resource))
            disks.verity[name] = encrypt_disk(disks.paths[name], disks.verity[name], key)
        apps = work / "apps.erofs"
        verity = _make_apps(tree, canonical(agent_settings(manifest, disks.verity)), apps)
        config = make_config(manifest, {"base": base.disk_info, "apps": verity, **disks.verity})
        # Whoever launches this would get the same refusal, but later.
        plan_boot(config, base.kernel.read_bytes(), base.initrd.read_bytes())
        return write_bundle(out_path, config, base.kernel, base.initrd, [base.disk, apps, *disks.paths.values()])


def read_attested_manifest(path: Path) -> Manifest:
    """The manifest at ``path``, of a class that has applications. Raises ``ConfigError``."""
    manifest = read_manifest(path)
    if not isinstance(manifest, Manifest):
        raise ConfigError(f"{path}: a {manifest.kind} runs a system, no applications", hint="see build_normal")
    return manifest


def key_file(bundle: Path, resource: str) -> Path:
    """Where the key is that a disk of ``bundle`` was encrypted with, and that the broker calls ``resource``."""
    return bundle.with_name(f"{bundle.name}.{resource.replace('/', '.')}.key")


@contextmanager
def _workplace(out_path: Path) -> Iterator[Path]:
    """A folder beside the result: what is built is as large, and must be on a disk that can hold it.

    Raises ``BuildError``, ``NoSpace``, also for what fails within.
    """
    try:
        work = Path(tempfile.mkdtemp(prefix=".vambrace-", dir=out_path.parent))
    except OSError as error:
        raise BuildError(f"{out_path.parent}: {error.strerror}", hint="choose another output") from None
    try:
        yield work
    except (OSError, NoSpace) as error:
        if isinstance(error, NoSpace) or error.errno == errno.ENOSPC:
            raise NoSpace(str(out_path.parent), "the image", hint="free some, or choose another --output") from error
        where = error.filename or out_path
        raise BuildError(
            f"the image cannot be built: {where}: {error.strerror}", hint="look at this file and its permissions"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _settle(manifest: Manifest, work: Path, disks: _Disks) -> Manifest:
    """``manifest`` with what the images of containers and the disk of a system say, which become ``disks``."""
    programs, images = settle(manifest.programs, work, manifest.storage)
    manifest = replace(manifest, programs=programs)
    for name, image in images.items():
        disks.add(name, image.disk, image.verity)
    if manifest.vm is None:
        return manifest
    system = build_system(manifest.vm.disk, manifest.vm.partition, work)
    with system.path.open("rb") as disk:
        check_units(disk, system.filesystem, [program.application for program in programs])
    disks.add(SYSTEM_DISK, system.path, system.verity)
    return replace(manifest, vm=replace(manifest.vm, filesystem=system.filesystem))


def _put_program(
    program: Program,
    tree: Path,
    own: Path | None,
    base: RuntimeBase,
    environments: Mapping[str, Path],
    disks: _Disks,
) -> None:
    """Put a program's files into its folder of ``tree``; or where they are encrypted onto a disk of their own, made of
    the folder ``own`` and mounted at the one in ``tree``, which is empty then."""
    name = program.zone.name
    target = own or tree / name
    stage(program, target)
    if program.requirements is not None:
        shutil.copytree(environments[name], target / python.FOLDER, symlinks=True)
    check_program(program.application, base.tree, target)
    if own:
        (tree / name).mkdir()
        (tree / name).chmod(0o755)
        file = own.with_suffix(".erofs")
        disks.add(own.name, file, make_erofs(own, file))


def _make_apps(tree: Path, settings: bytes, out: Path) -> VerityDisk:
    """The disk of all programs, and the agent's ``settings``, which are nobody else's to read."""
    (tree / SETTINGS).write_bytes(settings)
    (tree / SETTINGS).chmod(0o600)
    tree.chmod(0o755)
    return make_erofs(tree, out)
