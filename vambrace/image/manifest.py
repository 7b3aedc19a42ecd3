"""The owner's manifest: YAML whose every mistake is told with its line.

name: patients
class: realm                     # unless given; or secure: no percentages, verdict and endpoints
owner: owner.pem                 # what 'vambrace owner show' prints
suite: nist                      # unless given; or sm: SM2, SM3 and SM4
system: {memory: 384M}           # percent: as the highest of the applications', unless given
applications:
  - name: analysis
    files: analysis              # a folder, or a list of files and folders
    command: [python3, analyse.py]
    memory: 128M
    percent: 80
    results: [result.txt]        # below /results/analysis
    publish: [5432]              # TCP ports on which it serves its owner, docs/connect.md
    registers: [1]               # measurement registers that it may extend, 1 to 3: docs/events.md
endpoints:                       # for messages between Realms, docs/messages.md
  - offer: records               # or connect: records
    port: 8000                   # on the loopback of this Realm
    realm: ward                  # the other one's name; any, unless given
    owner: ward.pem              # its owner's certificate; the same owner, unless given
cache: {percent: 25}             # so much of the last-level cache for itself; demand: required, unless preferred
networks:                        # network cards, docs/network.md
  - name: lab                    # a network of the host; its name alone will do
    address: 10.0.0.2/24
    gateway: 10.0.0.1
devices:                         # PCI devices for this domain alone, docs/devices.md
  - name: disk
    kind: nvme                   # or network, gpu, accelerator, or vendor:device
    application: analysis        # whose device it is; nobody's but the kernel's, unless given
    address: 192.0.2.7/24        # of a network card

broker:                          # where secrets come from, docs/broker.md
  url: https://broker:8444
  certificate: broker.pem
  secrets:
    - name: password             # what the application asks its agent for
      application: analysis
      resource: patients/secret/password
sealing: {to: owner, version: 2} # or to: measurement, without version

A Normal VM is somebody's system as it is:

name: debian
class: normal
memory: 512M
debian: {files: files}           # a stock Debian system, with these files over it; or a system of your own:
kernel: vmlinuz
initrd: initrd.img
disks: [root.ext4]               # each domain writes to a copy of its own
cmdline: root=/dev/vda rw
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Final

import yaml

from vambrace.application import FIRST_PORT, LAST_PORT, SYSTEM, Application, Port, check_ports
from vambrace.cache import DEMANDS, REQUIRED, CacheShare
from vambrace.certificate import check_owner, owner_public_key, personalization
from vambrace.checks import check_choice, check_integer, check_name
from vambrace.classes import REALM, DomainClass, domain_class
from vambrace.config import (
    MAX_SECONDS,
    MAX_VCPUS,
    MIN_APPLICATION_MEMORY,
    MIN_SYSTEM_MEMORY,
    PAGE,
    ROLES,
    Device,
    Endpoint,
    Zone,
    check_application_count,
    check_devices,
    check_endpoints,
    check_memory,
    check_networks,
    check_percent,
    check_pins,
    listening_ports,
    window_bytes,
)
from vambrace.errors import ConfigError
from vambrace.image.certificates import read_certificates, read_owner
from vambrace.image.lines import Mapping
from vambrace.release import MEASUREMENT, SEALS, Broker, Sealing, Secret
from vambrace.suite import NIST, Suite, suite_named

SYSTEM_MEMORY: Final = 384 << 20
APPLICATION_MEMORY: Final = 128 << 20
NORMAL_MEMORY: Final = 512 << 20
NORMAL_CMDLINE: Final = "root=/dev/vda rw console=hvc0 quiet"
PERCENT: Final = 80
_MAX_MANIFEST: Final = 1 << 20
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MEMORY = re.compile(r"([0-9]{1,15})([KMG]?)(?:i?B)?")


@dataclass(frozen=True)
class Program:
    """One application, its zone, and where its files are on this machine."""

    application: Application
    zone: Zone
    files: tuple[Path, ...]
    merge: bool  # ``files`` is one folder whose contents are the application's


@dataclass(frozen=True)
class NetworkCard:
    """A card at the host's network ``name``; its ``address`` with a prefix length, and the ``gateway`` of the default
    route, may be empty."""

    name: str
    address: str = ""
    gateway: str = ""


@dataclass(frozen=True)
class Hardware:
    """One device, the application that it is given to and, for a network card, its address with the prefix length;
    both may be empty."""

    device: Device
    application: str
    address: str


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; ``owner`` is the certificate in PEM form, and so is ``channel``, which may be empty."""

    path: Path
    kind: DomainClass
    name: str
    owner: str
    channel: str
    suite: Suite
    vcpus: int
    debug: bool
    verdict_seconds: int
    collect_seconds: int
    system: Zone
    programs: tuple[Program, ...]
    endpoints: tuple[Endpoint, ...] = ()
    cache: CacheShare | None = None
    networks: tuple[NetworkCard, ...] = ()
    devices: tuple[Hardware, ...] = ()
    broker: Broker | None = None
    sealing: Sealing | None = None


@dataclass(frozen=True)
class NormalManifest:
    """A checked manifest of a Normal VM. Either there is a ``kernel``, with ``initrd`` and ``disks``, or all three are
    a stock Debian system's, with the contents of the folder ``files`` over it."""

    path: Path
    kind: DomainClass
    name: str
    vcpus: int
    memory: int
    cmdline: str
    kernel: Path | None
    initrd: Path | None
    disks: tuple[Path, ...]
    files: Path | None
    cache: CacheShare | None = None
    networks: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()


def read_manifest(path: Path) -> Manifest | NormalManifest:
    """Read the manifest at ``path``; paths in it are relative to its folder. Raises ``ConfigError``."""
    hint = "the manifest is a YAML file, see examples/patients/manifest.yaml"
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ConfigError(f"{path}: too large for a manifest", hint=hint)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text", hint=hint) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"not YAML: {error.problem}", hint=hint, line=mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):
        # The last two: an escape or a number in it that Python has no character or integer for.
        raise ConfigError(f"{path}: not YAML", hint=hint) from None
    if node is None:
        raise ConfigError(f"{path}: the manifest is empty", hint=hint)
    top = Mapping(node, "the manifest")
    with top.at("class"):
        kind = domain_class(top.string("class", REALM.name))
    return _manifest(path, top, kind) if kind.attested else _normal(path, top, kind)


def parse_memory(text: str | int) -> int:
    """Bytes of ``"128M"``, ``"1G"`` or a number of bytes. Raises ``ConfigError``."""
    match = _MEMORY.fullmatch(str(text))
    if match is None:
        raise ConfigError(f"{str(text)[:20]!r} is no size of memory", hint='for example "128M" or "1G"')
    return int(match[1]) * _UNITS[match[2]]


def _normal(path: Path, top: Mapping, kind: DomainClass) -> NormalManifest:
    folder = path.parent
    with top.at("name"):
        name = top.string("name")
        check_name(name, str(kind))
    with top.at("vcpus"):
        vcpus = top.integer("vcpus", 1)
        check_integer(vcpus, 1, MAX_VCPUS, "vcpus")
    memory = _memory(top, NORMAL_MEMORY, MIN_SYSTEM_MEMORY, str(kind))
    cmdline = top.string("cmdline", NORMAL_CMDLINE)
    kernel = initrd = files = None
    disks: tuple[Path, ...] = ()
    if "debian" in top:
        system = top.map("debian")
        assert system is not None
        with system.at("files"):
            files = _existing(folder, system.string("files")) if "files" in system else None
            if files is not None and not files.is_dir():
                raise ConfigError(f"{files} is not a folder", hint="its contents are put over the system's")
        system.done()
    else:
        with top.at("kernel"):
            kernel = _existing(folder, top.string("kernel"))
        with top.at("initrd"):
            initrd = _existing(folder, top.string("initrd"))
        with top.at("disks"):
            disks = tuple(_existing(folder, disk) for disk in top.strings("disks", required=True))
            for disk in disks:
                check_name(disk.stem, f"disk {disk}")
    cache = _cache(top)
    with top.at("networks"):
        networks = top.strings("networks")
        check_networks(networks)
    devices = tuple(_device(item) for item in top.maps("devices", required=False))
    top.done()
    return NormalManifest(
        path, kind, name, vcpus, memory, cmdline, kernel, initrd, disks, files, cache, tuple(networks), devices
    )


def _device(item: Mapping) -> Device:
    """A device of a Normal VM: what becomes of it is its own business."""
    hardware = _hardware(item, [])
    if hardware.application or hardware.address:
        raise ConfigError(f"device {hardware.device.name}: only name and kind", hint="the system does the rest")
    return hardware.device


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="paths are relative to the manifest's folder")
    return path


def _manifest(path: Path, top: Mapping, kind: DomainClass) -> Manifest:
    folder = path.parent
    with top.at("name"):
        name = top.string("name")
        check_name(name, str(kind))
    with top.at("suite"):
        suite = suite_named(top.string("suite", NIST.name))
    with top.at("owner"):
        owner, channel = read_owner(folder / top.string("owner"))
        check_owner(owner, channel, suite)
    numbers: dict[str, int] = {}
    for key, least, most, default in (
        ("vcpus", 1, MAX_VCPUS, 1),
        ("verdict_seconds", 1, MAX_SECONDS, 120),
        ("collect_seconds", 0, MAX_SECONDS, 300),
    ):
        numbers[key] = default
        if key == "verdict_seconds" and not kind.verdict:
            continue
        with top.at(key):
            numbers[key] = top.integer(key, default)
            check_integer(numbers[key], least, most, key)
    debug = top.boolean("debug", False)
    with top.at("applications"):
        items = top.maps("applications")
        check_application_count(len(items))
    programs: list[Program] = []
    pinning = "devices" in top
    for item in items:
        program = _program(item, folder, kind, pinning)
        with item.at("name"):
            if any(program.zone.name == other.zone.name for other in programs):
                raise ConfigError(f"application {program.zone.name}: appears twice", hint="choose another name")
        programs.append(program)
    system = _system(top, kind, max(program.zone.percent for program in programs), pinning)
    endpoints: tuple[Endpoint, ...] = ()
    if kind.messages:
        endpoints = tuple(_endpoint(item, folder, owner) for item in top.maps("endpoints", required=False))
    with top.at("endpoints"):
        check_endpoints(endpoints)
    with top.at("applications"):
        check_ports([program.application for program in programs], listening_ports(endpoints))
    cache = _cache(top)
    networks = tuple(_network(item) for item in top.words_or_maps("networks"))
    with top.at("networks"):
        check_networks([network.name for network in networks])
        for version in (4, 6):
            if sum(ip_address(card.gateway).version == version for card in networks if card.gateway) > 1:
                raise ConfigError(f"two gateways of IPv{version}", hint="there is one default route")
    names = [program.zone.name for program in programs]
    devices = tuple(_hardware(item, names) for item in top.maps("devices", required=False))
    with top.at("devices"):
        check_devices([hardware.device for hardware in devices], [system, *(program.zone for program in programs)])
    broker = _broker(top, folder, names) if kind.verdict else None
    sealing = _sealing(top) if kind.verdict else None
    top.done()
    return Manifest(
        path=path,
        kind=kind,
        name=name,
        owner=owner,
        channel=channel,
        suite=suite,
        debug=debug,
        system=system,
        programs=tuple(programs),
        endpoints=endpoints,
        cache=cache,
        networks=networks,
        devices=devices,
        broker=broker,
        sealing=sealing,
        vcpus=numbers["vcpus"],
        verdict_seconds=numbers["verdict_seconds"],
        collect_seconds=numbers["collect_seconds"],
    )


def _broker(top: Mapping, folder: Path, applications: list[str]) -> Broker | None:
    item = top.map("broker")
    if item is None:
        return None
    secrets = []
    for each in item.maps("secrets", required=False):
        with each.at("resource"):
            secrets.append(Secret(each.string("name"), each.string("application"), each.string("resource")))
        with each.at("application"):
            check_choice(secrets[-1].application, applications, f"secret {secrets[-1].name}: application")
        each.done()
    with item.at("certificate"):
        [certificate] = read_certificates(folder / item.string("certificate"), "broker")
    with item.at("url"):
        broker = Broker(item.string("url"), certificate, tuple(secrets))
    item.done()
    return broker


def _sealing(top: Mapping) -> Sealing | None:
    item = top.map("sealing")
    if item is None:
        return None
    to, version = item.string("to", MEASUREMENT), item.integer("version", 0)
    with item.at("version" if to in SEALS else "to"):
        sealing = Sealing(to, version)
    item.done()
    return sealing


def _endpoint(item: Mapping, folder: Path, owner: str) -> Endpoint:
    """One endpoint of a Realm of ``owner``, who is the peer's as well unless another one is named."""
    roles = [role for role in ROLES if role in item]
    if len(roles) != 1:
        raise ConfigError("endpoint: either offer or connect is expected", hint="offer: NAME", line=item.line)
    role = roles[0]
    with item.at(role):
        name = item.string(role)
        check_name(name, "endpoint")
    with item.at("owner"):
        peer = read_owner(folder / item.string("owner"))[0] if "owner" in item else owner
    with item.at("port"):
        port = item.integer("port", 0)
        check_integer(port, FIRST_PORT, LAST_PORT, f"endpoint {name}: port")
    with item.at("realm"):
        realm = item.string("realm", "")
    with item.at("measurement"):
        measurement = item.string("measurement", "")
        endpoint = Endpoint(name, role, port, personalization(owner_public_key(peer)).hex(), realm, measurement)
    item.done()
    return endpoint


def _cache(top: Mapping) -> CacheShare | None:
    item = top.map("cache")
    if item is None:
        return None
    demand, percent = item.string("demand", REQUIRED), item.integer("percent", 0)
    with item.at("percent" if demand in DEMANDS else "demand"):
        share = CacheShare(demand, percent)
    item.done()
    return share


def _network(item: str | Mapping) -> NetworkCard:
    if isinstance(item, str):
        return NetworkCard(item)
    with item.at("name"):
        name = item.string("name")
    address, gateway = item.string("address", ""), item.string("gateway", "")
    with item.at("address"):
        try:
            own = ip_interface(address) if address else None
        except ValueError:
            own = None
        # An address alone would be a network of its own, which is not what anybody means.
        if address and (own is None or "/" not in address):
            raise ConfigError(f"network {name}: {address[:60]!r} is no address", hint='for example "10.0.0.2/24"')
    with item.at("gateway"):
        try:
            within = not gateway or (own is not None and ip_address(gateway) in own.network)
        except ValueError:
            within = False
        if not within:
            raise ConfigError(f"network {name}: {gateway[:60]!r} is no gateway", hint="one at the card's network")
    item.done()
    return NetworkCard(name, str(own or ""), str(ip_address(gateway)) if gateway else "")


def _hardware(item: Mapping, applications: list[str]) -> Hardware:
    with item.at("name"):
        name = item.string("name")
    with item.at("kind"):
        device = Device(name, item.string("kind"))
    with item.at("application"):
        application = item.string("application", "")
        if application:
            check_choice(application, applications, f"device {name}: application")
    with item.at("address"):
        address = item.string("address", "")
        try:
            if address:
                ip_interface(address)
        except ValueError:
            raise ConfigError(f"device {name}: {address[:40]!r} is no address", hint="as in 192.0.2.7/24") from None
    item.done()
    return Hardware(device, application, address)


def _system(top: Mapping, kind: DomainClass, highest: int, pinning: bool) -> Zone:
    system = top.map("system")
    memory, percent, follow, pins = SYSTEM_MEMORY, highest, kind.encrypted, None
    if system is not None:
        memory = _memory(system, SYSTEM_MEMORY, MIN_SYSTEM_MEMORY, "system")
        if kind.encrypted and "percent" in system:
            percent, follow = _percent(system, "system"), False
        pins = _pins(system, memory, percent, "system")
        system.done()
    return Zone(SYSTEM, memory, percent, follow, _default_pins(pins, memory, percent, pinning))


def _pins(item: Mapping, memory: int, percent: int, where: str) -> int | None:
    """Bytes that devices may reach; None where the manifest leaves that to us."""
    with item.at("pins"):
        if "pins" not in item:
            item.scalar("pins", 0)  # known all the same
            return None
        pins = parse_memory(item.scalar("pins"))
        check_pins(pins, memory, percent, where)
        return pins


def _default_pins(pins: int | None, memory: int, percent: int, pinning: bool) -> int:
    """A quarter of what may be plaintext, where there are devices."""
    if pins is not None:
        return pins
    return window_bytes(memory, percent) // 4 // PAGE * PAGE if pinning else 0


def _program(item: Mapping, folder: Path, kind: DomainClass, pinning: bool) -> Program:
    with item.at("name"):
        name = item.string("name")
        check_name(name, "application")
    where = f"application {name}"
    memory = _memory(item, APPLICATION_MEMORY, MIN_APPLICATION_MEMORY, where)
    percent = _percent(item, where) if kind.encrypted else 0
    pins = _default_pins(_pins(item, memory, percent, where), memory, percent, pinning)
    files, merge = _files(item, folder, where)
    results = []
    with item.at("results"):
        for path in item.strings("results"):
            results.append(path if path.startswith("/") else f"/results/{name}/{path}")
    with item.at("publish"):
        ports = tuple(map(Port, item.integers("publish")))
    with item.at("registers"):
        registers = item.integers("registers")
    with item.at("command"):
        application = Application(
            name=name,
            command=_command(item),
            environment=item.mapping("environment"),
            directory=f"/app/{name}",
            restarts=item.integer("restarts", 0),
            results=tuple(results),
            ports=ports,
            registers=registers,
        )
    item.done()
    return Program(application, Zone(name, memory, percent, pins=pins), files, merge)


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
                raise ConfigError(f"{where}: {path} does not exist", hint="paths are relative to the manifest's folder")
        if merge and not paths[0].is_dir():
            merge = False
        if len({path.name for path in paths}) != len(paths) or any(not path.name for path in paths):
            raise ConfigError(f"{where}: two files have the same name", hint="put them in folders")
        return paths, merge


def _memory(item: Mapping, default: int, least: int, where: str) -> int:
    with item.at("memory"):
        memory = parse_memory(item.scalar("memory", default))
        check_memory(memory, least, where)
        return memory


def _percent(item: Mapping, where: str) -> int:
    with item.at("percent"):
        percent = item.integer("percent", PERCENT)
        check_percent(percent, where)
        return percent
