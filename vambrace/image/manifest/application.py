"""Applications: folders and files with a command line, which run on the runtime base; containers; units of a disk."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vambrace.application import (
    MAX_RESTARTS,
    Application,
    Port,
    check_application_count,
    check_environment,
    check_registers,
    check_results,
    check_unit,
    check_units,
    check_unprivileged,
)
from vambrace.classes import DomainClass
from vambrace.config import Zone
from vambrace.errors import ConfigError
from vambrace.image.manifest.container import Wish, read_wish
from vambrace.image.manifest.languages import read_java, read_python
from vambrace.image.manifest.lines import CORRECT_PATH, Mapping
from vambrace.image.manifest.storage import read_encryption, read_scratch
from vambrace.image.manifest.zones import read_zone
from vambrace.image.packages import check_packages
from vambrace.image.python import environment_of
from vambrace.storage import Scratch

_UNKNOWN: Final = ("(as the image says)",)


@dataclass(frozen=True)
class Program:
    """One application, its zone, where its files are on this machine, Debian's ``packages`` that it needs, and what its
    Python ``requirements`` are.

    Of a container, which has ``container`` and none of these, ``application`` is what is known before its image is
    read. ``scratch`` is its space on a disk, ``key`` the broker's name for the key of its files where
    these are encrypted.
    """

    application: Application
    zone: Zone
    files: tuple[Path, ...]
    merge: bool  # the first of ``files`` is a folder whose contents are the application's
    packages: tuple[str, ...] = ()
    requirements: Path | None = None
    container: Wish | None = None
    scratch: Scratch | None = None
    key: str = ""


def read_programs(top: Mapping, folder: Path, kind: DomainClass) -> tuple[Program, ...]:
    """All applications, each with a name of its own; beside ``vm`` all are units. Raises ``ConfigError``."""
    with top.at("applications"):
        items = top.maps("applications")
        check_application_count(len(items))
    programs: list[Program] = []
    for item in items:
        pinning = "devices" in top
        program = _unit(item, kind) if "vm" in top else _program(item, folder, kind, pinning=pinning)
        with item.at("name"):
            if any(program.zone.name == other.zone.name for other in programs):
                raise ConfigError(f"application {program.zone.name}: appears twice", hint="choose another name")
        with item.at("unit"):
            check_units([each.application for each in (*programs, program)])
        programs.append(program)
    return tuple(programs)


def _program(item: Mapping, folder: Path, kind: DomainClass, *, pinning: bool) -> Program:
    name = item.name("application")
    with item.at("unit"):
        if "unit" in item:
            raise ConfigError(f"application {name}: a unit, and no system that it is of", hint="name the disk: vm")
    zone = read_zone(item, name, kind, pinning=pinning)
    disks: dict[str, Any] = {"scratch": read_scratch(item, name), "key": read_encryption(item)}
    if "container" in item:
        return _container(item, folder, zone, disks)
    files, merge = _files(item, folder, f"application {name}")
    java, requirements = read_java(item, folder), read_python(item, folder)
    common = _common(item, name)
    with item.at("publish"):
        check_unprivileged(common["ports"], f"application {name}")
    with item.at("environment"):
        environment = item.mapping("environment")
        check_environment(environment, f"application {name}")
    with item.at("command"):
        application = Application(
            name=name,
            command=java.command(zone.memory) if java else _command(item),
            environment=(environment_of(name) if requirements else {}) | environment,
            directory=f"/app/{name}",
            **common,
        )
    with item.at("packages"):
        packages = item.strings("packages")
        check_packages(packages)
    item.done()
    if java:
        packages = java.packages(packages)
        files = _with_archive(files, merge, java.path)
    return Program(application, zone, files, merge, packages, requirements, **disks)


def _unit(item: Mapping, kind: DomainClass) -> Program:
    """A unit of the system on the disk of the VM form."""
    name = item.name("application")
    zone = read_zone(item, name, kind, pinning=False)
    with item.at("unit"):
        unit = item.string("unit")
        check_unit(unit, f"application {name}")
    common = _common(item, name)
    with item.at("environment"):
        environment = item.mapping("environment")
        application = Application(name=name, command=(), environment=environment, directory="/", unit=unit, **common)
    item.done()
    return Program(application, zone, (), merge=False)


def _container(item: Mapping, folder: Path, zone: Zone, disks: dict[str, Any]) -> Program:
    """A container: what its image says is not known yet."""
    wish = read_wish(item, folder, _command(item) if "command" in item else None)
    common = _common(item, zone.name)
    with item.at("environment"):
        application = Application(
            name=zone.name,
            command=_UNKNOWN,
            environment=item.mapping("environment"),
            directory="/",
            container=wish.container,
            **common,
        )
    item.done()
    return Program(application, zone, (), merge=False, container=wish, **disks)


def _common(item: Mapping, name: str) -> dict[str, Any]:
    """What applications of every form have."""
    with item.at("results"):
        paths = item.strings("results")
        results = tuple(path if path.startswith("/") else f"/results/{name}/{path}" for path in paths)
        check_results(results, name)
    with item.at("publish"):
        ports = tuple(map(Port, item.integers("publish")))
    with item.at("registers"):
        registers = item.integers("registers")
        check_registers(registers, f"application {name}")
    return {
        "restarts": item.number("restarts", 0, MAX_RESTARTS, 0),
        "results": results,
        "ports": ports,
        "registers": registers,
    }


def _with_archive(files: tuple[Path, ...], merge: bool, archive: Path) -> tuple[Path, ...]:
    """``files`` and the Java archive, which may be one of them already."""
    same = files[0] / archive.name if merge else next((each for each in files if each.name == archive.name), None)
    if same is None or not same.exists():
        return (*files, archive)
    if not same.samefile(archive):
        raise ConfigError(f"{same} and {archive} have the same name", hint="rename one of them")
    return files


def _command(item: Mapping) -> tuple[str, ...]:
    if item.is_text("command"):
        try:
            return tuple(shlex.split(item.string("command")))
        except ValueError as error:
            raise ConfigError(f"command: {error}") from None
    return item.strings("command", required=True)


def _files(item: Mapping, folder: Path, where: str) -> tuple[tuple[Path, ...], bool]:
    with item.at("files"):
        merge = item.is_text("files")
        names = (item.string("files"),) if merge else item.strings("files")
        paths = tuple(folder / name for name in names)
        for path in paths:
            try:
                there = path.exists()
            except OSError as error:  # for example a name that no file system takes
                raise ConfigError(f"{where}: {str(path)[:200]}: {error.strerror}", hint="correct the path") from None
            if not there:
                raise ConfigError(f"{where}: {path} does not exist", hint=CORRECT_PATH)
        if merge and not paths[0].is_dir():
            merge = False
        if len({path.name for path in paths}) != len(paths) or any(not path.name for path in paths):
            raise ConfigError(f"{where}: two files have the same name", hint="put them in folders")
        return paths, merge
