"""What of a domain's configuration says which disks it writes to (docs/volumes.md): scratch space, and volumes.

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Final

from vambrace.canonical import Object
from vambrace.checks import check_choice, check_name, check_size, check_text, check_unique
from vambrace.classes import DomainClass
from vambrace.errors import ConfigError
from vambrace.record import Record
from vambrace.release import NAME_BROKER, NAME_SEALING, check_resource

MAX_VOLUMES: Final = 8
MIB: Final = 1 << 20
LEAST, MOST = 32 * MIB, 1 << 40  # bytes of one disk
#: The key of a volume that has no broker: it is in the volume, sealed to the Realm.
SEALED: Final = "sealed"
#: Where an application finds its scratch space, and the folder that volumes may be mounted below without further ado.
SCRATCH, DATA = "/scratch", "/data"
#: What is the system's, or another thing's already: nothing is mounted there or below.
TAKEN: Final = (
    *("/app", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/results", "/run", "/sbin", "/scratch"),
    *("/sys", "/tmp", "/usr"),
)


class Scratch(Record):
    """Space of an ``application`` for one run: ``size`` bytes of disk."""

    application: str
    size: int

    def __post_init__(self) -> None:
        check_name(self.application, "scratch: application")
        check_disk_size(self.size, f"application {self.application}: scratch")

    @classmethod
    def read(cls, item: Object) -> Scratch:
        return cls(item.string("application"), item.integer("size"))


class Volume(Record):
    """A disk of ``size`` bytes that outlives the Realm, which ``application`` finds at ``mount``. ``key`` is
    the broker's name for its key, or ``SEALED``."""

    name: str
    application: str
    size: int
    mount: str
    key: str

    def __post_init__(self) -> None:
        check_name(self.name, "volume")
        where = f"volume {self.name}"
        check_name(self.application, f"{where}: application")
        check_disk_size(self.size, where)
        check_mount(self.mount, where)
        if self.key != SEALED:
            check_resource(self.key, f"{where}: key")

    @classmethod
    def read(cls, item: Object) -> Volume:
        name, application, size = item.string("name"), item.string("application"), item.integer("size")
        return cls(name, application, size, item.string("mount"), item.string("key"))


class Store(Record):
    """One disk that the host gives to be written to: its ``name`` among a domain's, how the guest finds it, and its
    bytes."""

    name: str
    serial: str
    size: int


class Storage(Record):
    """All disks that a domain writes to: scratch space, at most one of an application, and volumes, each under a key of
    its own."""

    scratch: tuple[Scratch, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def __post_init__(self) -> None:
        check_unique([each.application for each in self.scratch], "scratch of")
        check_unique([volume.name for volume in self.volumes], "volume")
        check_unique([volume.key for volume in self.volumes if volume.key != SEALED], "key of a volume")
        if len(self.volumes) > MAX_VOLUMES:
            raise ConfigError(f"{len(self.volumes)} volumes", hint=f"at most {MAX_VOLUMES}")
        for application in {volume.application for volume in self.volumes}:
            check_mounts([volume.mount for volume in self.volumes if volume.application == application])

    @property
    def stores(self) -> tuple[Store, ...]:
        """All disks, in the order in which the guest has them."""
        scratch = (Store(f"scratch/{s.application}", f"scratch-{i}", s.size) for i, s in enumerate(self.scratch))
        volumes = (Store(f"volume/{v.name}", f"volume-{i}", v.size) for i, v in enumerate(self.volumes))
        return (*scratch, *volumes)

    @classmethod
    def read(cls, item: Object) -> Storage:
        scratch = tuple(map(Scratch.read, item.objects("scratch")))
        return cls(scratch, tuple(map(Volume.read, item.objects("volumes"))))

    def check(self, applications: Sequence[str], kind: DomainClass, *, broker: bool, sealing: bool) -> None:
        """Whether it fits the rest of the configuration. Raises ``ConfigError``."""
        if not self.stores:
            raise ConfigError("storage: there is nothing in it", hint="take it out")
        for each in self.scratch:
            check_choice(each.application, applications, "scratch: application")
        for volume in self.volumes:
            where = f"volume {volume.name}"
            check_choice(volume.application, applications, f"{where}: application")
            if not kind.verdict:
                raise ConfigError(f"{where}: a {kind} has none", hint="take it out, or make it a Realm")
            if volume.key != SEALED and not broker:
                raise ConfigError(f"{where}: there is no broker that has its key", hint=NAME_BROKER)
            if volume.key == SEALED and not sealing:
                raise ConfigError(f"{where}: the image seals nothing", hint=NAME_SEALING)


def check_disk_size(size: object, where: str) -> None:
    """In bytes: whole MiB, from ``LEAST`` to ``MOST``. Raises ``ConfigError``."""
    check_size(size, LEAST, MOST, f"{where}: size")
    if int(str(size)) % MIB:
        raise ConfigError(f"{where}: the size must be a multiple of 1 MiB", hint='for example "512M"')


def check_mount(path: object, where: str) -> None:
    """An absolute path in its shortest form, at or below which nothing of the system is. Raises ``ConfigError``."""
    check_text(path, f"{where}: mount", 256)
    assert isinstance(path, str)
    if not path.startswith("/") or posixpath.normpath(path) != path or path == "/":
        raise ConfigError(f"{where}: mount {path[:60]!r} is no place", hint=f"for example {DATA}/records")
    if any(path == taken or path.startswith(f"{taken}/") for taken in TAKEN):
        raise ConfigError(f"{where}: nothing is mounted at {path[:60]}", hint=f"for example {DATA}/records")


def check_mounts(paths: Sequence[str]) -> None:
    """Those of one application: none is another, or below another. Raises ``ConfigError``."""
    ordered = sorted(f"{path}/" for path in paths)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if other.startswith(one):
            raise ConfigError(f"two volumes are mounted at {one[:-1]}", hint="mount them side by side")
