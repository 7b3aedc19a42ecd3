"""What makes an application a container, as the measured configuration describes it (docs/containers.md).

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

from typing import Final

from vambrace.canonical import Object
from vambrace.checks import check_choice, check_integer, check_name, check_strings, check_text, check_unique
from vambrace.errors import ConfigError
from vambrace.record import Record

#: Users and groups of a container are 0 to this; each container has as many of the Realm's for itself.
MAX_ID: Final = (1 << 24) - 1
MAX_GROUPS: Final = 64
MAX_SECONDS: Final = 3600
MAX_MILLISECONDS: Final = 24 * 3600 * 1000
MAX_RETRIES: Final = 1000
MAX_SIGNAL: Final = 64

#: What a container may do unless its manifest says otherwise: Docker's default set, capabilities(7) without CAP_. They
#: hold inside of the container only, which is a user namespace.
DEFAULT_CAPABILITIES: Final = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
#: And what a manifest may add. Whatever opens more of the kernel is not among them.
MORE_CAPABILITIES: Final = ("DAC_READ_SEARCH", "IPC_LOCK", "LEASE", "SYS_NICE", "SYS_PTRACE", "SYS_RESOURCE")
CAPABILITIES: Final = tuple(sorted((*DEFAULT_CAPABILITIES, *MORE_CAPABILITIES)))


class Health(Record):
    """The check that the image brings: ``command`` is run in the container every ``interval``, and may take
    ``timeout``; after ``retries`` failures one after the other the container is unhealthy. What fails within
    ``start_period`` does not count. Times in milliseconds."""

    command: tuple[str, ...]
    interval: int = 30_000
    timeout: int = 30_000
    start_period: int = 0
    retries: int = 3

    def __post_init__(self) -> None:
        check_strings(self.command, "health check")
        if not self.command or not self.command[0]:
            raise ConfigError("health check: the command is empty", hint="take the health check out of the image")
        for argument in self.command:
            check_text(argument, "health check")
        check_integer(self.interval, 1000, MAX_MILLISECONDS, "health check: interval", unit=" ms")
        check_integer(self.timeout, 1000, MAX_MILLISECONDS, "health check: timeout", unit=" ms")
        check_integer(self.start_period, 0, MAX_MILLISECONDS, "health check: start period", unit=" ms")
        check_integer(self.retries, 1, MAX_RETRIES, "health check: retries")


class Container(Record):
    """The root file system is the disk of this name, under a layer of the run that is gone with it. Processes begin as
    ``uid`` and ``gid``, with the further ``groups``, and ``capabilities`` if they are root."""

    OPTIONAL = frozenset({"health"})

    disk: str
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    stop_signal: int = 15
    stop_seconds: int = 10
    processes: int = 512
    files: int = 4096
    health: Health | None = None

    def __post_init__(self) -> None:
        check_name(self.disk, "container: disk")
        for identity in (self.uid, self.gid, *self.groups):
            check_integer(identity, 0, MAX_ID, "container: user or group")
        if len(self.groups) > MAX_GROUPS:
            raise ConfigError(f"container: {len(self.groups)} groups", hint=f"at most {MAX_GROUPS}")
        for capability in self.capabilities:
            check_choice(capability, CAPABILITIES, "container: capability")
        check_unique(self.capabilities, "capability")
        check_integer(self.stop_signal, 1, MAX_SIGNAL, "container: stop signal")
        check_integer(self.stop_seconds, 0, MAX_SECONDS, "container: stop_seconds")
        check_integer(self.processes, 1, 1 << 15, "container: processes")
        check_integer(self.files, 16, 1 << 20, "container: files")

    @classmethod
    def read(cls, item: Object) -> Container:
        """That of a configuration. Raises ``ConfigError``."""
        return cls(
            disk=item.string("disk"),
            uid=item.integer("uid"),
            gid=item.integer("gid"),
            groups=item.integers("groups"),
            capabilities=item.strings("capabilities"),
            stop_signal=item.integer("stop_signal"),
            stop_seconds=item.integer("stop_seconds"),
            processes=item.integer("processes"),
            files=item.integer("files"),
            health=_read_health(item.object("health")) if "health" in item else None,
        )


def _read_health(item: Object) -> Health:
    return Health(
        command=item.strings("command"),
        interval=item.integer("interval"),
        timeout=item.integer("timeout"),
        start_period=item.integer("start_period"),
        retries=item.integer("retries"),
    )
