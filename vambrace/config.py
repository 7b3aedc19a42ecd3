"""The configuration of a domain (docs/architecture.md, section 1).

``DomainConfig`` is what the owner and the monitor agree on: its encoding, canonical JSON (RFC 8785 for
objects, lists, strings, integers and booleans), enters the launch measurement, of a class that has one, byte for
byte. Everything is validated when an object is made, so a ``DomainConfig`` that exists is a valid one, whoever wrote
its bytes.

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vambrace.application import (
    FIRST_PORT,
    LAST_PORT,
    SYSTEM,
    Application,
    check_ports,
    read_applications,
)
from vambrace.cache import CacheShare
from vambrace.canonical import BUILD_AGAIN, Object, canonical, decode_json, unknown_keys
from vambrace.certificate import check_owner, owner_public_key, personalization
from vambrace.checks import (
    check_boolean,
    check_choice,
    check_hex,
    check_integer,
    check_name,
    check_text,
    check_unique,
)
from vambrace.classes import REALM, DomainClass, domain_class
from vambrace.errors import ConfigError
from vambrace.record import Record
from vambrace.release import Broker, Sealing
from vambrace.suite import BY_HASH, NIST, Suite

SCHEMA: Final = "vambrace.domain/1"
FORMS: Final = ("application",)
OFFER, CONNECT = ROLES = ("offer", "connect")

MAX_CONFIG_BYTES: Final = 256 << 10
MAX_APPLICATIONS: Final = 15  # Debian's arm64 kernel has 16 NUMA nodes, one is the system's
MAX_DISKS: Final = 8
MAX_ENDPOINTS: Final = 16
MAX_NETWORKS: Final = 4
MAX_PCI_DEVICES: Final = 16
MAX_VCPUS: Final = 16
MAX_CMDLINE: Final = 2047  # arm64 COMMAND_LINE_SIZE is 2048 with its NUL
MAX_SECONDS: Final = 7 * 24 * 3600

MEMORY_STEP: Final = 2 << 20
MIN_SYSTEM_MEMORY: Final = 96 << 20
MIN_APPLICATION_MEMORY: Final = 16 << 20
MAX_MEMORY: Final = 1 << 40  # all zones together: the guest's physical address space
MAX_DISK: Final = 1 << 40
BLOCK: Final = 4096
PAGE: Final = 4096
MINIMUM_WINDOW, PIN_HEADROOM = 64, 16  # pages, as in core/window.h

#: What a domain may ask for, and the beginning of the PCI class code of such devices.
DEVICE_KINDS: Final[Mapping[str, str]] = {
    "nvme": "010802",
    "network": "0200",
    "gpu": "03",
    "accelerator": "12",
}

_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")


class Zone(Record):
    """Memory with one encrypted percentage. ``memory`` in bytes; ``follow`` is for the system's zone only. ``pins``,
    bytes, is how much of it devices may reach at a time: that much stays plaintext meanwhile."""

    name: str
    memory: int
    percent: int
    follow: bool = False
    pins: int = 0

    def __post_init__(self) -> None:
        check_name(self.name, "zone")
        least = MIN_SYSTEM_MEMORY if self.name == SYSTEM else MIN_APPLICATION_MEMORY
        check_memory(self.memory, least, f"zone {self.name}")
        check_percent(self.percent, f"zone {self.name}")
        check_boolean(self.follow, f"zone {self.name}: follow")
        check_pins(self.pins, self.memory, self.percent, f"zone {self.name}")

    @property
    def pages(self) -> int:
        return self.memory // PAGE


class Disk(Record):
    """A read-only disk: ``data_size`` bytes of EROFS, then its dm-verity tree, ``size`` bytes in all.

    That of a class that is not measured is *plain*: any ``size`` bytes, of which the domain has a copy to write to.
    """

    name: str
    sha256: str
    size: int
    data_size: int = 0
    verity_root: str = ""
    verity_salt: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "disk")
        where = f"disk {self.name}"
        check_hex(self.sha256, 32, f"{where}: sha256")
        if self.plain:
            check_integer(self.size, BLOCK, MAX_DISK, f"{where}: size")
            if self.size % BLOCK or self.verity_root or self.verity_salt:
                raise ConfigError(f"{where}: not whole blocks without dm-verity", hint=BUILD_AGAIN)
            return
        check_hex(self.verity_root, 32, f"{where}: verity_root")
        check_hex(self.verity_salt, None, f"{where}: verity_salt")
        check_integer(self.data_size, BLOCK, MAX_DISK, f"{where}: data_size")
        check_integer(self.size, self.data_size, MAX_DISK, f"{where}: size")
        if self.data_size % BLOCK or self.size % BLOCK:
            raise ConfigError(f"{where}: sizes must be multiples of {BLOCK} bytes", hint=BUILD_AGAIN)

    @property
    def plain(self) -> bool:
        return self.data_size == 0

    def as_object(self) -> dict[str, Any]:
        """The JSON object of the configuration."""
        if self.plain:
            return {"name": self.name, "sha256": self.sha256, "size": self.size}
        return self.as_dict()


class Endpoint(Record):
    """Where programs of this Realm reach another one (``connect``), or are reached by it (``offer``): docs/messages.md.

    ``port`` is the TCP port on the guest's loopback, of the agent or of the program that serves. The peer is a Realm of
    the owner with the personalization value ``owner`` (hex); where given, with the measured name ``realm`` and the
    launch ``measurement`` (hex). Both are empty where any will do.
    """

    name: str
    role: str
    port: int
    owner: str
    realm: str = ""
    measurement: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "endpoint")
        where = f"endpoint {self.name}"
        check_choice(self.role, ROLES, f"{where}: role")
        check_integer(self.port, FIRST_PORT, LAST_PORT, f"{where}: port")
        check_hex(self.owner, 64, f"{where}: owner")
        if self.realm != "":
            check_name(self.realm, f"{where}: realm")
        if self.measurement != "":
            check_hex(self.measurement, 32, f"{where}: measurement")


class Device(Record):
    """A PCI device that this domain has for itself: of a ``kind`` of ``DEVICE_KINDS``, or one with a vendor's and
    device's number (``1b36:0010``). Which one the host gives is its business."""

    name: str
    kind: str

    def __post_init__(self) -> None:
        check_name(self.name, "device")
        if not isinstance(self.kind, str) or not (self.kind in DEVICE_KINDS or _PCI_ID.fullmatch(self.kind)):
            raise ConfigError(
                f"device {self.name}: {str(self.kind)[:40]!r} is no kind of device",
                hint=f"one of {', '.join(DEVICE_KINDS)}, or vendor:device in hexadecimal",
            )


class DomainConfig(Record):
    """Everything that determines a domain, apart from the bytes of kernel and initrd.

    Which of it there is depends on the class ``kind``; the rest has its default. ``hash``, ``cipher`` and the owner's
    key are of one suite; where TLS cannot use its keys, ``channel`` is the certificate of the owner's key for TLS.
    Raises ``ConfigError`` when made with values that contradict section 1.
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
        if (self.broker or self.sealing) and not self.kind.verdict:
            raise ConfigError(f"broker and sealing: a {self.kind} has none", hint="take them out")
        if self.broker:
            self.broker.check_applications([application.name for application in self.applications])
        for name in set(_PARTS) - set(self._parts()):
            if getattr(self, name) != getattr(DomainConfig, name):
                raise ConfigError(f"{name}: a {self.kind} has none", hint="take it out")

    def _parts(self) -> list[str]:
        return [name for name, has in _PARTS.items() if has(self.kind)]

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
        """Index of the zone called ``name``; raises ``ConfigError`` where there is none."""
        for index, zone in enumerate(self.zones):
            if zone.name == name:
                return index
        known = ", ".join(zone.name for zone in self.zones)
        raise ConfigError(f"{name}: no such application", hint=f"there are {known}")

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
            "zones": [self._zone_object(index) for index in range(len(self.zones))],
            "disks": [disk.as_object() for disk in self.disks],
        }
        for name in self._parts():
            if name not in _OPTIONAL or getattr(self, name):
                found[name] = getattr(self, name)
        if self.kind.attested:
            found["applications"] = [application.as_object() for application in self.applications]
        if self.cache:
            found["cache"] = self.cache.as_object()
        if self.endpoints:
            found["endpoints"] = [endpoint.as_dict() for endpoint in self.endpoints]
        if self.networks:
            found["networks"] = list(self.networks)
        if self.devices:
            found["devices"] = [device.as_dict() for device in self.devices]
        if self.broker:
            found["broker"] = self.broker.as_object()
        if self.sealing:
            found["sealing"] = self.sealing.as_dict()
        return found

    def _zone_object(self, index: int) -> dict[str, Any]:
        zone = self.zones[index]
        found: dict[str, Any] = {"name": zone.name, "memory": zone.memory}
        if self.kind.encrypted:
            found["percent"] = zone.percent
            if index == 0:
                found["follow"] = zone.follow
        if zone.pins:
            found["pins"] = zone.pins
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
        values: dict[str, Any] = {}
        for name, has in _PARTS.items():
            if has(kind) and (name in top or name not in _OPTIONAL):
                values[name] = _READERS[name](top)
        config = cls(
            kind=kind,
            name=top.string("name"),
            debug=top.boolean("debug"),
            vcpus=top.integer("vcpus"),
            cmdline=top.string("cmdline"),
            zones=tuple(_read_zone(zone, kind, index) for index, zone in enumerate(top.objects("zones"))),
            disks=tuple(_read_disk(disk, kind) for disk in top.objects("disks")),
            cache=_read_cache(top.object("cache")) if "cache" in top else None,
            networks=top.strings("networks") if "networks" in top else (),
            devices=tuple(
                Device(device.string("name"), device.string("kind"))
                for device in (top.objects("devices") if "devices" in top else ())
            ),
            broker=Broker.read(top.object("broker")) if "broker" in top else None,
            sealing=Sealing.read(top.object("sealing")) if "sealing" in top else None,
            **values,
        )
        # One check for every unknown key, every optional spelling and every odd number format.
        if config.encode() != data:
            unknown = unknown_keys(decode_json(data), config.as_object())
            if unknown:
                raise ConfigError(f"configuration: unknown key {unknown[0]}", hint=BUILD_AGAIN)
            raise ConfigError("configuration: not in canonical form", hint=BUILD_AGAIN)
        return config


#: What a configuration has beside what every one has, and of which classes it is.
_PARTS: Final[dict[str, Callable[[DomainClass], bool]]] = {
    "form": lambda kind: kind.attested,
    "hash": lambda kind: kind.measured,
    "owner": lambda kind: kind.attested,
    "channel": lambda kind: kind.attested,
    "collect_seconds": lambda kind: kind.attested,
    "applications": lambda kind: kind.attested,
    "cipher": lambda kind: kind.encrypted,
    "verdict_seconds": lambda kind: kind.verdict,
    "endpoints": lambda kind: kind.messages,
}
#: Those that are left out where they are empty.
_OPTIONAL: Final = frozenset({"channel", "endpoints"})


def _read_zone(zone: Object, kind: DomainClass, index: int) -> Zone:
    pins = zone.integer("pins") if "pins" in zone else 0
    if not kind.encrypted:
        return Zone(zone.string("name"), zone.integer("memory"), 0, pins=pins)
    follow = zone.boolean("follow") if index == 0 else False
    return Zone(zone.string("name"), zone.integer("memory"), zone.integer("percent"), follow, pins)


def _read_disk(disk: Object, kind: DomainClass) -> Disk:
    name, sha256, size = disk.string("name"), disk.string("sha256"), disk.integer("size")
    if not kind.measured:
        return Disk(name, sha256, size)
    root, salt = disk.string("verity_root"), disk.string("verity_salt")
    return Disk(name, sha256, size, disk.integer("data_size"), root, salt)


def _read_cache(cache: Object) -> CacheShare:
    return CacheShare(cache.string("demand"), cache.integer("percent"))


def _read_endpoints(top: Object) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(
            name=endpoint.string("name"),
            role=endpoint.string("role"),
            port=endpoint.integer("port"),
            owner=endpoint.string("owner"),
            realm=endpoint.string("realm"),
            measurement=endpoint.string("measurement"),
        )
        for endpoint in top.objects("endpoints")
    )


_READERS: Final[dict[str, Callable[[Object], Any]]] = {
    "form": lambda top: top.string("form"),
    "hash": lambda top: top.string("hash"),
    "owner": lambda top: top.string("owner"),
    "channel": lambda top: top.string("channel"),
    "collect_seconds": lambda top: top.integer("collect_seconds"),
    "applications": read_applications,
    "cipher": lambda top: top.string("cipher"),
    "verdict_seconds": lambda top: top.integer("verdict_seconds"),
    "endpoints": _read_endpoints,
}


# --- checks, shared with the manifest ---------------------------------------------------------------------


def check_application_count(count: int) -> None:
    if count == 0:
        raise ConfigError("applications: there are none", hint="a Realm runs at least one application")
    if count > MAX_APPLICATIONS:
        raise ConfigError(
            f"applications: {count}, but at most {MAX_APPLICATIONS} are possible",
            hint="each needs a zone of its own and a guest has 16; put the others in a second Realm",
        )


def check_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """Several offers may lead to one port; of those that the agent listens on, each is another."""
    if len(endpoints) > MAX_ENDPOINTS:
        raise ConfigError(f"{len(endpoints)} endpoints", hint=f"at most {MAX_ENDPOINTS}")
    check_unique([endpoint.name for endpoint in endpoints], "endpoint")
    listening = listening_ports(endpoints)
    for endpoint in endpoints:
        if listening.count(endpoint.port) > (endpoint.role == CONNECT):
            raise ConfigError(
                f"endpoint {endpoint.name}: port {endpoint.port} is another endpoint's", hint="choose another port"
            )


def listening_ports(endpoints: Sequence[Endpoint]) -> list[int]:
    """The ports of the loopback that the agent listens on for programs."""
    return [endpoint.port for endpoint in endpoints if endpoint.role == CONNECT]


def check_networks(names: Sequence[str]) -> None:
    """One card for each: with two at one network a guest would not know which is which."""
    if len(names) > MAX_NETWORKS:
        raise ConfigError(f"{len(names)} networks", hint=f"at most {MAX_NETWORKS}")
    for name in names:
        check_name(name, "network")
    check_unique(names, "network")
def window_bytes(memory: int, percent: int) -> int:
    """How much of a zone may be plaintext (docs/architecture.md, section 4)."""
    return min(memory, max((100 - percent) * (memory // PAGE) // 100, MINIMUM_WINDOW) * PAGE)


def check_pins(pins: object, memory: int, percent: int, where: str) -> None:
    check_integer(pins, 0, MAX_MEMORY, f"{where}: pins", unit=" bytes")
    most = max(0, window_bytes(memory, percent) - PIN_HEADROOM * PAGE)
    if int(str(pins)) % PAGE:
        raise ConfigError(f"{where}: pins must be a multiple of {PAGE} bytes", hint='for example "16M"')
    if int(str(pins)) > most:
        raise ConfigError(
            f"{where}: {int(str(pins)) >> 10} KiB of pins are more than {percent} % leave in plaintext",
            hint=f"at most {most >> 10} KiB, or a lower percentage",
        )


def check_devices(devices: Sequence[Device], zones: Sequence[Zone]) -> None:
    if len(devices) > MAX_PCI_DEVICES:
        raise ConfigError(f"{len(devices)} devices", hint=f"at most {MAX_PCI_DEVICES}")
    check_unique([device.name for device in devices], "device")
    if devices and not zones[0].pins:
        raise ConfigError(
            "devices: the system may pin nothing for them", hint="give the system pins: what its drivers need"
        )
    if not devices and any(zone.pins for zone in zones):
        raise ConfigError("pins: there are no devices", hint="leave them out")


def check_percent(percent: object, where: str) -> None:
    if type(percent) is not int or not 0 <= percent <= 100:
        raise ConfigError(
            f"{where}: percent is {str(percent)[:20]}",
            hint="the encrypted part of the memory, a whole number from 0 to 100",
        )


def check_memory(memory: object, least: int, where: str) -> None:
    check_integer(memory, least, MAX_MEMORY, f"{where}: memory", unit=" bytes")
    if int(str(memory)) % MEMORY_STEP:
        raise ConfigError(f"{where}: memory must be a multiple of 2 MiB", hint='for example "128M"')
