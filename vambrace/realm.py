"""The measured configuration of a Realm (docs/architecture.md, section 1).

``RealmConfig`` is what the owner and the monitor agree on: its encoding, canonical JSON (RFC 8785 for
objects, lists, strings, integers and booleans), enters the launch measurement byte for byte. Everything is
validated when an object is made, so a ``RealmConfig`` that exists is a valid one, whoever wrote its bytes.

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vambrace.certificate import owner_public_key, personalization
from vambrace.errors import ConfigError, UsageError
from vambrace.record import Record

SCHEMA: Final = "vambrace.realm/1"
FORMS: Final = ("application",)
HASHES: Final = ("sha-256", "sm3")
CIPHERS: Final = ("aes-256-gcm", "sm4-gcm")
OFFER, CONNECT = ROLES = ("offer", "connect")

MAX_CONFIG_BYTES: Final = 256 << 10
MAX_APPLICATIONS: Final = 15  # Debian's arm64 kernel has 16 NUMA nodes, one is the system's
MAX_DISKS: Final = 8
MAX_ENDPOINTS: Final = 16
FIRST_PORT, LAST_PORT = 1024, 65535  # an application has no capability for smaller ones
MAX_VCPUS: Final = 16
MAX_CMDLINE: Final = 2047  # arm64 COMMAND_LINE_SIZE is 2048 with its NUL
MAX_SECONDS: Final = 7 * 24 * 3600
MAX_RESTARTS: Final = 1000
MAX_STRING: Final = 4096
MAX_ITEMS: Final = 256

MEMORY_STEP: Final = 2 << 20
MIN_SYSTEM_MEMORY: Final = 96 << 20
MIN_APPLICATION_MEMORY: Final = 16 << 20
MAX_MEMORY: Final = 1 << 40  # all zones together: the guest's physical address space
MAX_DISK: Final = 1 << 40
BLOCK: Final = 4096
PAGE: Final = 4096

SYSTEM: Final = "system"
_BUILD_AGAIN: Final = "build the image again"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


class Zone(Record):
    """Memory with one encrypted percentage. ``memory`` in bytes; ``follow`` is for the system's zone only."""

    name: str
    memory: int
    percent: int
    follow: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "zone")
        least = MIN_SYSTEM_MEMORY if self.name == SYSTEM else MIN_APPLICATION_MEMORY
        check_memory(self.memory, least, f"zone {self.name}")
        check_percent(self.percent, f"zone {self.name}")
        _boolean(self.follow, f"zone {self.name}: follow")

    @property
    def pages(self) -> int:
        return self.memory // PAGE


class Application(Record):
    """One unmodified program with its own zone; ``results`` are files below ``/results/<name>``."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    restarts: int = 0
    results: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "application")
        where = f"application {self.name}"
        if self.name == SYSTEM:
            raise ConfigError(f"{where}: the name is the system zone's", hint="choose another name")
        _items(self.command, f"{where}: command")
        if not self.command or not self.command[0]:
            raise ConfigError(f"{where}: the command is empty", hint='for example ["python3", "main.py"]')
        for argument in self.command:
            _text(argument, f"{where}: command")
        if not isinstance(self.environment, Mapping) or len(self.environment) > MAX_ITEMS:
            raise ConfigError(f"{where}: environment must map names to strings", hint=f"at most {MAX_ITEMS} of them")
        for variable, value in self.environment.items():
            if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
                raise ConfigError(
                    f"{where}: {variable!r} is no name of an environment variable",
                    hint="letters, digits and _, not starting with a digit",
                )
            _text(value, f"{where}: environment variable {variable}")
        check_below(self.directory, f"/app/{self.name}", f"{where}: directory", itself=True)
        check_integer(self.restarts, 0, MAX_RESTARTS, f"{where}: restarts")
        _items(self.results, f"{where}: results")
        for path in self.results:
            check_below(path, f"/results/{self.name}", f"{where}: result")
        _unique(self.results, f"{where}: result")


class Disk(Record):
    """A read-only disk: ``data_size`` bytes of EROFS, then its dm-verity tree, ``size`` bytes in all."""

    name: str
    sha256: str
    size: int
    data_size: int
    verity_root: str
    verity_salt: str

    def __post_init__(self) -> None:
        check_name(self.name, "disk")
        where = f"disk {self.name}"
        _hex(self.sha256, 32, f"{where}: sha256")
        _hex(self.verity_root, 32, f"{where}: verity_root")
        _hex(self.verity_salt, None, f"{where}: verity_salt")
        check_integer(self.data_size, BLOCK, MAX_DISK, f"{where}: data_size")
        check_integer(self.size, self.data_size, MAX_DISK, f"{where}: size")
        if self.data_size % BLOCK or self.size % BLOCK:
            raise ConfigError(f"{where}: sizes must be multiples of {BLOCK} bytes", hint=_BUILD_AGAIN)


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
        _hex(self.owner, 64, f"{where}: owner")
        if self.realm != "":
            check_name(self.realm, f"{where}: realm")
        if self.measurement != "":
            _hex(self.measurement, 32, f"{where}: measurement")


class RealmConfig(Record):
    """Everything that determines a Realm, apart from the bytes of kernel and initrd.

    Raises ``ConfigError`` when made with values that contradict section 1.
    """

    name: str
    cmdline: str
    owner: str
    zones: tuple[Zone, ...]
    applications: tuple[Application, ...]
    disks: tuple[Disk, ...]
    form: str = "application"
    debug: bool = False
    hash: str = "sha-256"
    cipher: str = "aes-256-gcm"
    vcpus: int = 1
    verdict_seconds: int = 120
    collect_seconds: int = 300
    endpoints: tuple[Endpoint, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "Realm")
        check_choice(self.form, FORMS, "form")
        check_choice(self.hash, HASHES, "hash")
        check_choice(self.cipher, CIPHERS, "cipher")
        _boolean(self.debug, "debug")
        check_integer(self.vcpus, 1, MAX_VCPUS, "vcpus")
        check_integer(self.verdict_seconds, 1, MAX_SECONDS, "verdict_seconds")
        check_integer(self.collect_seconds, 0, MAX_SECONDS, "collect_seconds")
        _text(self.cmdline, "cmdline", MAX_CMDLINE)
        if not self.cmdline.isascii() or not self.cmdline.isprintable():
            raise ConfigError("cmdline: not printable ASCII", hint="take other characters out of it")
        owner_public_key(self.owner)
        self._check_zones()
        _unique([disk.name for disk in self.disks], "disk")
        if len(self.disks) > MAX_DISKS:
            raise ConfigError(f"{len(self.disks)} disks", hint=f"at most {MAX_DISKS}")
        check_endpoints(self.endpoints)

    def _check_zones(self) -> None:
        check_application_count(len(self.applications))
        names = [application.name for application in self.applications]
        _unique(names, "application")
        if [zone.name for zone in self.zones] != [SYSTEM, *names]:
            raise ConfigError(
                "zones: they are not the system's and one for each application, in order", hint=_BUILD_AGAIN
            )
        if any(zone.follow for zone in self.zones[1:]):
            raise ConfigError("zones: only the system's percentage can follow the others", hint=_BUILD_AGAIN)
        if self.zones[0].follow and self.zones[0].percent != max(z.percent for z in self.zones[1:]):
            raise ConfigError("zone system: it follows, but is not at the highest percentage", hint=_BUILD_AGAIN)
        if self.memory > MAX_MEMORY:
            raise ConfigError("zones: too much memory together", hint=f"at most {MAX_MEMORY >> 30} GiB")

    @property
    def memory(self) -> int:
        """Bytes of all zones together."""
        return sum(zone.memory for zone in self.zones)

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
        """The JSON object that ``encode`` writes."""
        zones: list[dict[str, Any]] = []
        for zone in self.zones:
            zones.append({"name": zone.name, "memory": zone.memory, "percent": zone.percent})
        zones[0]["follow"] = self.zones[0].follow
        # Left out where there are none: the bytes, and with them the measurement, are those of before there were any.
        endpoints = {"endpoints": [endpoint.as_dict() for endpoint in self.endpoints]} if self.endpoints else {}
        return {
            "schema": SCHEMA,
            "name": self.name,
            "form": self.form,
            "debug": self.debug,
            "hash": self.hash,
            "cipher": self.cipher,
            "vcpus": self.vcpus,
            "cmdline": self.cmdline,
            "owner": self.owner,
            "verdict_seconds": self.verdict_seconds,
            "collect_seconds": self.collect_seconds,
            "zones": zones,
            "applications": [application_object(application) for application in self.applications],
            "disks": [disk.as_dict() for disk in self.disks],
            **endpoints,
        }

    @classmethod
    def parse(cls, data: bytes) -> RealmConfig:
        """Read ``data``, which anyone may have written.

        Raises ``ConfigError`` for anything but the canonical encoding of a valid configuration.
        """
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"configuration: more than {MAX_CONFIG_BYTES >> 10} KiB", hint=_BUILD_AGAIN)
        top = _Object(decode_json(data), "configuration")
        top.constant("schema", SCHEMA)
        zones = tuple(
            Zone(
                name=zone.string("name"),
                memory=zone.integer("memory"),
                percent=zone.integer("percent"),
                follow=zone.boolean("follow") if index == 0 else False,
            )
            for index, zone in enumerate(top.objects("zones"))
        )
        applications = tuple(
            Application(
                name=item.string("name"),
                command=item.strings("command"),
                environment=item.mapping("environment"),
                directory=item.string("directory"),
                restarts=item.integer("restarts"),
                results=item.strings("results"),
            )
            for item in top.objects("applications")
        )
        disks = tuple(
            Disk(
                name=disk.string("name"),
                sha256=disk.string("sha256"),
                size=disk.integer("size"),
                data_size=disk.integer("data_size"),
                verity_root=disk.string("verity_root"),
                verity_salt=disk.string("verity_salt"),
            )
            for disk in top.objects("disks")
        )
        endpoints = tuple(
            Endpoint(
                name=endpoint.string("name"),
                role=endpoint.string("role"),
                port=endpoint.integer("port"),
                owner=endpoint.string("owner"),
                realm=endpoint.string("realm"),
                measurement=endpoint.string("measurement"),
            )
            for endpoint in (top.objects("endpoints") if "endpoints" in top else ())
        )
        config = cls(
            name=top.string("name"),
            form=top.string("form"),
            debug=top.boolean("debug"),
            hash=top.string("hash"),
            cipher=top.string("cipher"),
            vcpus=top.integer("vcpus"),
            cmdline=top.string("cmdline"),
            owner=top.string("owner"),
            verdict_seconds=top.integer("verdict_seconds"),
            collect_seconds=top.integer("collect_seconds"),
            zones=zones,
            applications=applications,
            disks=disks,
            endpoints=endpoints,
        )
        # One check for every unknown key, every optional spelling and every odd number format.
        if config.encode() != data:
            unknown = _unknown_keys(decode_json(data), config.as_object())
            if unknown:
                raise ConfigError(f"configuration: unknown key {unknown[0]}", hint=_BUILD_AGAIN)
            raise ConfigError("configuration: not in canonical form", hint="build the image again")
        return config


def application_object(application: Application) -> dict[str, Any]:
    """The JSON object of one application, the same in the configuration and for the agent."""
    return {
        "name": application.name,
        "command": list(application.command),
        "environment": dict(application.environment),
        "directory": application.directory,
        "restarts": application.restarts,
        "results": list(application.results),
    }


def canonical(value: Any) -> bytes:
    """Canonical JSON (RFC 8785) of ``value``, whose keys must be ASCII and whose numbers integers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def decode_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no key twice, integers only. Raises ``ConfigError``."""

    def refuse(text: str) -> Any:
        raise ConfigError(f"configuration: {text[:20]} is not an integer", hint=_BUILD_AGAIN)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ConfigError("configuration: a key appears twice", hint=_BUILD_AGAIN)
        return result

    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=pairs, parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise ConfigError("configuration: not JSON", hint=_BUILD_AGAIN) from None


class _Object:
    """Typed access to a JSON object; every mistake is a ``ConfigError`` that names the place."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: an object is expected", hint=_BUILD_AGAIN)
        self._value: dict[str, Any] = value
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def _get(self, key: str, kind: type, what: str) -> Any:
        if key not in self._value:
            raise ConfigError(f"{self._where}: {key} is missing", hint=_BUILD_AGAIN)
        value = self._value[key]
        if type(value) is not kind:
            raise ConfigError(f"{self._where}: {key} must be {what}", hint=_BUILD_AGAIN)
        return value

    def string(self, key: str) -> str:
        return str(self._get(key, str, "a string"))

    def integer(self, key: str) -> int:
        return int(self._get(key, int, "an integer"))

    def boolean(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def constant(self, key: str, expected: str) -> None:
        if self.string(key) != expected:
            raise ConfigError(f"{self._where}: {key} must be {expected}", hint="build the image again")

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._get(key, list, "a list of strings")
        if not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{self._where}: {key} must be a list of strings", hint=_BUILD_AGAIN)
        return tuple(value)

    def mapping(self, key: str) -> dict[str, str]:
        value = self._get(key, dict, "an object of strings")
        if not all(isinstance(item, str) for item in value.values()):
            raise ConfigError(f"{self._where}: {key} must be an object of strings", hint=_BUILD_AGAIN)
        return dict(value)

    def objects(self, key: str) -> list[_Object]:
        value = self._get(key, list, "a list of objects")
        return [_Object(item, f"{self._where}: {key}[{index}]") for index, item in enumerate(value)]


def _unknown_keys(given: Any, known: Any, where: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        found = [f"{where}{key}" for key in given if key not in known]
        for key in known:
            found += _unknown_keys(given.get(key), known[key], f"{where}{key}.")
        return found
    if isinstance(given, list) and isinstance(known, list):
        pairs = zip(given, known, strict=False)
        return [name for a, b in pairs for name in _unknown_keys(a, b, where)]
    return []


# --- checks, shared with the manifest ---------------------------------------------------------------------


def check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what}: {str(name)[:40]!r} is not a valid name",
            hint="1 to 32 of a-z, 0-9 and -, with no - at either end",
        )


def check_realm_name(name: object) -> None:
    """For the name that a call gives a Realm, in place of the configuration's. Raises ``UsageError``."""
    try:
        check_name(name, "Realm")
    except ConfigError as error:
        raise UsageError(error.message, hint=error.hint) from None


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
    _unique([endpoint.name for endpoint in endpoints], "endpoint")
    listening = [endpoint.port for endpoint in endpoints if endpoint.role == CONNECT]
    for endpoint in endpoints:
        if listening.count(endpoint.port) > (endpoint.role == CONNECT):
            raise ConfigError(
                f"endpoint {endpoint.name}: port {endpoint.port} is another endpoint's", hint="choose another port"
            )


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


def check_integer(value: object, least: int, most: int, where: str, unit: str = "") -> None:
    if type(value) is not int:
        raise ConfigError(f"{where}: a whole number is expected", hint=f"from {least} to {most}{unit}")
    if not least <= value <= most:
        raise ConfigError(f"{where} is {str(value)[:24]}{unit}", hint=f"from {least} to {most}{unit}")


def check_choice(value: object, choices: Sequence[str], where: str) -> None:
    if value not in choices:
        raise ConfigError(f"{where}: {str(value)[:40]!r} is not known", hint="one of " + ", ".join(choices))


def check_below(path: object, folder: str, where: str, *, itself: bool = False) -> None:
    """``path`` must be absolute, normal (no ``..``, no ``//``) and below ``folder``."""
    _text(path, where)
    assert isinstance(path, str)
    inside = path.startswith(folder + "/") or (itself and path == folder)
    if not inside or posixpath.normpath(path) != path:
        raise ConfigError(
            f"{where}: {path[:60]!r} is outside {folder}",
            hint=f"an absolute path below {folder}, without . and ..",
        )


def _text(value: object, where: str, most: int = MAX_STRING) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: a string is expected", hint='put it in quotation marks')
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{where}: not valid Unicode", hint="write it in UTF-8") from None
    if length > most:
        raise ConfigError(f"{where}: longer than {most} bytes", hint="make it shorter")
    if "\0" in value:
        raise ConfigError(f"{where}: contains a NUL character", hint="take it out")


def _items(value: object, where: str) -> None:
    if not isinstance(value, tuple) or len(value) > MAX_ITEMS:
        raise ConfigError(f"{where}: a list of strings is expected", hint=f"at most {MAX_ITEMS} of them")


def _boolean(value: object, where: str) -> None:
    if type(value) is not bool:
        raise ConfigError(f"{where}: true or false is expected", hint="without quotation marks")


def _hex(value: object, length: int | None, where: str) -> None:
    if not isinstance(value, str) or not _HEX.fullmatch(value) or len(value) > 512:
        raise ConfigError(f"{where}: lower-case hexadecimal digits are expected", hint=_BUILD_AGAIN)
    if length is not None and len(value) != 2 * length:
        raise ConfigError(f"{where}: {2 * length} hexadecimal digits are expected", hint=_BUILD_AGAIN)


def _unique(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what} {name}: appears twice", hint="every name must be different")
        seen.add(name)

