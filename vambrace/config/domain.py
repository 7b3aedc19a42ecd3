"""``DomainConfig`` is what the owner and the monitor agree on: its encoding, canonical JSON (RFC 8785 for
objects, lists, strings, integers and booleans), enters the launch measurement, of a class that has one, byte for
byte. Everything is validated when an object is made, so a ``DomainConfig`` that exists is a valid one, whoever wrote
its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vambrace.application import SYSTEM, Application, check_application_count, check_ports, check_units
from vambrace.cache import CacheShare
from vambrace.canonical import BUILD_AGAIN, Object, canonical, decode_json, unknown_keys
from vambrace.certificate import check_owner, owner_public_key, personalization
from vambrace.checks import check_boolean, check_choice, check_integer, check_name, check_text, check_unique
from vambrace.classes import REALM, DomainClass, domain_class
from vambrace.config.device import Device, check_devices, check_networks
from vambrace.config.disk import Disk
from vambrace.config.endpoint import Endpoint, check_endpoints, listening_ports
from vambrace.config.zone import MAX_MEMORY, Zone
from vambrace.errors import ConfigError, UsageError
from vambrace.record import Record, json_value
from vambrace.release import NAME_BROKER, Broker, Sealing
from vambrace.storage import Storage, Store
from vambrace.suite import BY_HASH, NIST, Suite

SCHEMA: Final = "vambrace.domain/1"
VM: Final = "vm"
FORMS: Final = ("application", VM)
#: Where the system of the form vm is.
SYSTEM_DISK: Final = "system"

MAX_CONFIG_BYTES: Final = 256 << 10
MAX_DISKS: Final = 20  # base and files, one of each container, and some; all devices have 32 slots together
MAX_VCPUS: Final = 16
MAX_CMDLINE: Final = 2047  # arm64 COMMAND_LINE_SIZE is 2048 with its NUL
MAX_SECONDS: Final = 7 * 24 * 3600


class DomainConfig(Record):
    """Everything that determines a domain, apart from the bytes of kernel and initrd.

    Which of it there is depends on the class ``kind``; the rest has its default. ``hash``, ``cipher`` and the owner's
    key are of one suite; where TLS cannot use its keys, ``channel`` is the certificate of the owner's key for TLS.
    Raises ``ConfigError`` when made with values that contradict docs/architecture.md, section 1.
    """

    name: str
    cmdline: str
    zones: tuple[Zone, ...]
    disks: tuple[Disk, ...]
    kind: DomainClass = REALM
    owner: str = ""
    channel: str = ""
    applications: tuple[Application, ...] = ()
    form: str = "application"
    debug: bool = False
    hash: str = NIST.hash
    cipher: str = NIST.cipher
    vcpus: int = 1
    verdict_seconds: int = 120
    collect_seconds: int = 300
    endpoints: tuple[Endpoint, ...] = ()
    cache: CacheShare | None = None
    networks: tuple[str, ...] = ()  # a network card at each
    devices: tuple[Device, ...] = ()
    broker: Broker | None = None
    sealing: Sealing | None = None
    storage: Storage | None = None

    def __post_init__(self) -> None:
        check_name(self.name, self.kind.title)
        check_boolean(self.debug, "debug")
        check_integer(self.vcpus, 1, MAX_VCPUS, "vcpus")
        check_text(self.cmdline, "cmdline", MAX_CMDLINE)
        if not self.cmdline.isascii() or not self.cmdline.isprintable():
            raise ConfigError("cmdline: not printable ASCII", hint="take other characters out of it")
        self._check_zones()
        check_unique([disk.name for disk in self.disks], "disk")
        if len(self.disks) > MAX_DISKS:
            raise ConfigError(f"{len(self.disks)} disks", hint=f"at most {MAX_DISKS}")
        names = [disk.name for disk in self.disks]
        for application in self.applications:
            if application.container:
                check_choice(application.container.disk, names, f"application {application.name}: disk")
        if any(bool(application.unit) != (self.form == VM) for application in self.applications):
            raise ConfigError("applications: units belong to the form vm, and nothing else does", hint=BUILD_AGAIN)
        check_units(self.applications)
        if self.form == VM:
            check_choice(SYSTEM_DISK, names, "disks")
        if any(disk.plain == self.kind.measured for disk in self.disks):
            raise ConfigError(f"disks: not those of a {self.kind}", hint=BUILD_AGAIN)
        self._check_parts()

    def _check_parts(self) -> None:
        """What is there only in some classes."""
        if self.kind.attested:
            check_choice(self.form, FORMS, "form")
            check_choice(self.hash, list(BY_HASH), "hash")
            check_integer(self.collect_seconds, 0, MAX_SECONDS, "collect_seconds")
            check_owner(self.owner, self.channel, self.suite)
        if self.kind.encrypted and self.cipher != self.suite.cipher:
            raise ConfigError(f"cipher: not {self.suite.cipher}, as the {self.suite} has it", hint=BUILD_AGAIN)
        if self.kind.verdict:
            check_integer(self.verdict_seconds, 1, MAX_SECONDS, "verdict_seconds")
        check_endpoints(self.endpoints)
        check_ports(self.applications, listening_ports(self.endpoints))
        check_networks(self.networks)
        check_devices(self.devices, self.zones)
        names = [application.name for application in self.applications]
        if self.broker:
            self.broker.check_applications(names)
        elif any(disk.key for disk in self.disks):
            raise ConfigError("disks: one is encrypted, and there is no broker", hint=NAME_BROKER)
        for part in _PARTS:
            if not part.belongs_to(self.kind) and getattr(self, part.name) != getattr(DomainConfig, part.name):
                raise ConfigError(f"{part.name}: a {self.kind} has none", hint="take it out")
        if self.storage:
            self.storage.check(names, self.kind, broker=bool(self.broker), sealing=bool(self.sealing))

    def _check_zones(self) -> None:
        if self.kind.attested:
            check_application_count(len(self.applications))
        names = [application.name for application in self.applications]
        check_unique(names, "application")
        if [zone.name for zone in self.zones] != [SYSTEM, *names]:
            raise ConfigError(
                "zones: they are not the system's and one for each application, in order", hint=BUILD_AGAIN
            )
        if any(zone.follow for zone in self.zones[1:]):
            raise ConfigError("zones: only the system's percentage can follow the others", hint=BUILD_AGAIN)
        if not self.kind.encrypted and any(zone.percent or zone.follow for zone in self.zones):
            raise ConfigError(f"zones: the memory of a {self.kind} is not encrypted", hint="take percent out")
        if self.zones[0].follow and self.zones[0].percent != max(z.percent for z in self.zones[1:]):
            raise ConfigError("zone system: it follows, but is not at the highest percentage", hint=BUILD_AGAIN)
        if self.memory > MAX_MEMORY:
            raise ConfigError("zones: too much memory together", hint=f"at most {MAX_MEMORY >> 30} GiB")

    @property
    def memory(self) -> int:
        """Bytes of all zones together."""
        return sum(zone.memory for zone in self.zones)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The disks of its own that it writes to, beside plain ones."""
        return self.storage.stores if self.storage else ()

    @property
    def block_devices(self) -> tuple[Disk | Store, ...]:
        """All of its disks, in the order in which it finds them."""
        return (*self.disks, *self.stores)

    @property
    def console(self) -> bool:
        """Whether the operator has its console."""
        return self.kind.console or self.debug

    @property
    def suite(self) -> Suite:
        """What hashes, signs and encrypts for it."""
        return BY_HASH[self.hash]

    @property
    def owner_spki(self) -> bytes:
        """SubjectPublicKeyInfo (DER) of the owner's key."""
        return owner_public_key(self.owner)

    def personalization(self) -> bytes:
        """The Realm personalization value: 64 bytes that stand for the owner."""
        return personalization(self.owner_spki)

    def zone_of(self, name: str) -> int:
        """Index of the zone called ``name``; raises ``UsageError`` where there is none."""
        for index, zone in enumerate(self.zones):
            if zone.name == name:
                return index
        known = ", ".join(zone.name for zone in self.zones)
        raise UsageError(f"{name}: no such application", hint=f"there are {known}")

    def encode(self) -> bytes:
        """The canonical bytes that are measured."""
        return canonical(self.as_object())

    def as_object(self) -> dict[str, Any]:
        """The JSON object that ``encode`` writes: what every domain has, and what this one's class has."""
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "class": self.kind.name,
            "name": self.name,
            "debug": self.debug,
            "vcpus": self.vcpus,
            "cmdline": self.cmdline,
            "zones": [zone.object_of(self.kind) for zone in self.zones],
            "disks": [disk.as_object() for disk in self.disks],
        }
        for part in _PARTS:
            value = getattr(self, part.name)
            if part.belongs_to(self.kind) and (value or not part.optional):
                found[part.name] = json_value(value)
        return found

    @classmethod
    def parse(cls, data: bytes) -> DomainConfig:
        """Read ``data``, which anyone may have written.

        Raises ``ConfigError`` for anything but the canonical encoding of a valid configuration.
        """
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"configuration: more than {MAX_CONFIG_BYTES >> 10} KiB", hint=BUILD_AGAIN)
        top = Object(decode_json(data), "configuration")
        top.constant("schema", SCHEMA)
        kind = domain_class(top.string("class"))
        parts = {
            part.name: part.read(top, part.name)
            for part in _PARTS
            if part.belongs_to(kind) and (part.name in top or not part.optional)
        }
        config = cls(
            kind=kind,
            name=top.string("name"),
            debug=top.boolean("debug"),
            vcpus=top.integer("vcpus"),
            cmdline=top.string("cmdline"),
            zones=tuple(Zone.read(zone, kind) for zone in top.objects("zones")),
            disks=tuple(Disk.read(disk, kind) for disk in top.objects("disks")),
            **parts,
        )
        # One check for every unknown key, every optional spelling and every odd number format.
        if config.encode() != data:
            unknown = unknown_keys(decode_json(data), config.as_object())
            if unknown:
                raise ConfigError(f"configuration: unknown key {unknown[0]}", hint=BUILD_AGAIN)
            raise ConfigError("configuration: not in canonical form", hint=BUILD_AGAIN)
        return config


class _Part(Record):
    """What a configuration has beside what every one has: in the classes with that ``trait``, or in all; where it is
    ``optional``, it is left out when it is empty."""

    name: str
    trait: str
    read: Callable[[Object, str], Any]
    optional: bool = False

    def belongs_to(self, kind: DomainClass) -> bool:
        return not self.trait or bool(getattr(kind, self.trait))


def _one(read: Callable[[Object], Any]) -> Callable[[Object, str], Any]:
    return lambda top, name: read(top.object(name))


def _each(read: Callable[[Object], Any]) -> Callable[[Object, str], tuple[Any, ...]]:
    return lambda top, name: tuple(read(item) for item in top.objects(name))


_PARTS: Final = (
    _Part("form", "attested", Object.string),
    _Part("hash", "measured", Object.string),
    _Part("owner", "attested", Object.string),
    _Part("channel", "attested", Object.string, optional=True),
    _Part("collect_seconds", "attested", Object.integer),
    _Part("applications", "attested", _each(Application.read)),
    _Part("cipher", "encrypted", Object.string),
    _Part("verdict_seconds", "verdict", Object.integer),
    _Part("endpoints", "messages", _each(Endpoint.read), optional=True),
    _Part("cache", "", _one(CacheShare.read), optional=True),
    _Part("networks", "", Object.strings, optional=True),
    _Part("devices", "", _each(Device.read), optional=True),
    _Part("broker", "verdict", _one(Broker.read), optional=True),
    _Part("sealing", "verdict", _one(Sealing.read), optional=True),
    _Part("storage", "attested", _one(Storage.read), optional=True),
)
