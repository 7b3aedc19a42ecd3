"""A Secure VM or a Realm: its owner, its system, its applications, and what is between them and the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vambrace.application import check_ports
from vambrace.cache import DEMANDS, CacheShare
from vambrace.certificate import check_owner
from vambrace.classes import DomainClass
from vambrace.config import (
    MAX_SECONDS,
    MAX_VCPUS,
    DomainConfig,
    Endpoint,
    Zone,
    check_devices,
    check_endpoints,
    listening_ports,
)
from vambrace.errors import ConfigError
from vambrace.image.certificates import read_owner
from vambrace.image.manifest.application import Program, read_programs
from vambrace.image.manifest.devices import Hardware, NetworkCard, read_cards, read_hardware
from vambrace.image.manifest.lines import Mapping
from vambrace.image.manifest.realm import read_broker, read_endpoint
from vambrace.image.manifest.storage import read_storage
from vambrace.image.manifest.vm import SystemWish, check_alone, read_system
from vambrace.image.manifest.zones import read_system_zone
from vambrace.release import NAME_BROKER, SEALS, Broker, Sealing
from vambrace.storage import Storage
from vambrace.suite import NIST, Suite, suite_named


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
    storage: Storage | None = None
    vm: SystemWish | None = None


def read_attested(path: Path, top: Mapping, kind: DomainClass) -> Manifest:
    """The manifest of an attested class. Raises ``ConfigError``."""
    folder = path.parent
    name = top.name(str(kind))
    with top.at("suite"):
        suite = suite_named(top.string("suite", NIST.name))
    with top.at("owner"):
        owner, channel = read_owner(folder / top.string("owner"))
        check_owner(owner, channel, suite)
    vcpus = top.number("vcpus", 1, MAX_VCPUS, DomainConfig.vcpus)
    verdict_seconds = DomainConfig.verdict_seconds
    if kind.verdict:
        verdict_seconds = top.number("verdict_seconds", 1, MAX_SECONDS, verdict_seconds)
    collect_seconds = top.number("collect_seconds", 0, MAX_SECONDS, DomainConfig.collect_seconds)
    debug = top.boolean("debug", False)
    vm = read_system(top, folder)
    if vm:
        check_alone(top)
    programs = read_programs(top, folder, kind)
    highest = max(program.zone.percent for program in programs)
    system = read_system_zone(top, kind, highest, pinning="devices" in top)
    endpoints = _endpoints(top, folder, owner) if kind.messages else ()
    with top.at("applications"):
        check_ports([program.application for program in programs], listening_ports(endpoints))
    cache = top.choice_and_number("cache", CacheShare, ("demand", DEMANDS), "percent")
    networks = read_cards(top)
    devices = _hardware(top, system, programs)
    broker = sealing = None
    if kind.verdict:
        broker = read_broker(top, folder, [program.zone.name for program in programs])
        sealing = top.choice_and_number("sealing", Sealing, ("to", SEALS), "version")
    keys = [program.key for program in programs] + ([vm.key] if vm else [])
    storage = _storage(top, programs, kind, encrypted=any(keys), broker=bool(broker), sealing=bool(sealing))
    top.done()
    return Manifest(
        path=path,
        kind=kind,
        name=name,
        owner=owner,
        channel=channel,
        suite=suite,
        vcpus=vcpus,
        debug=debug,
        verdict_seconds=verdict_seconds,
        collect_seconds=collect_seconds,
        system=system,
        programs=programs,
        endpoints=endpoints,
        cache=cache,
        networks=networks,
        devices=devices,
        broker=broker,
        sealing=sealing,
        storage=storage,
        vm=vm,
    )


def _endpoints(top: Mapping, folder: Path, owner: str) -> tuple[Endpoint, ...]:
    endpoints = tuple(read_endpoint(item, folder, owner) for item in top.maps("endpoints", required=False))
    with top.at("endpoints"):
        check_endpoints(endpoints)
    return endpoints


def _hardware(top: Mapping, system: Zone, programs: Sequence[Program]) -> tuple[Hardware, ...]:
    # A container has a /dev of its own, with none of the machine's devices.
    plain = [program.zone.name for program in programs if not program.container]
    devices = tuple(read_hardware(item, plain) for item in top.maps("devices", required=False))
    with top.at("devices"):
        check_devices([hardware.device for hardware in devices], [system, *(program.zone for program in programs)])
    return devices


def _storage(
    top: Mapping, programs: Sequence[Program], kind: DomainClass, *, encrypted: bool, broker: bool, sealing: bool
) -> Storage | None:
    """Disks to write to; for their keys, and those of files that are ``encrypted``, there must be who has them."""
    names = [program.zone.name for program in programs]
    storage = read_storage(top, [program.scratch for program in programs if program.scratch], names)
    with top.at("applications"):
        if encrypted and not broker:
            raise ConfigError("encrypt: there is no broker that has the key", hint=NAME_BROKER)
    with top.at("volumes"):
        if storage:
            storage.check(names, kind, broker=broker, sealing=sealing)
    return storage
