"""The daemon's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vambrace.errors import ConfigError, PartitionError
from vambrace.partition.cards import Network
from vambrace.partition.cgroups import ROOT
from vambrace.partition.devices import PATTERN
from vambrace.partition.geometry import Cache, configured
from vambrace.serving.settings import check, check_range, internal, load, parse, setting
from vambrace.suite import NIST, Suite, suite_named

NO_TRUSTZONE = "no-trustzone"
OFF, WAYS, COLOURS, AUTO = PARTITIONS = ("off", "ways", "colours", "auto")
_PLACE = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:]{2,39}):[0-9]{1,5}")
_NETWORK = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
#: What the kernel takes as the name of an interface.
_INTERFACE = re.compile(r"[!-.0-~]{1,15}")
MAX_CARDS: Final = 1000  # a bridge has at most 1023 ports
_HINT: Final = "correct the settings file"


@dataclass(frozen=True)
class CacheSettings:
    """The table ``[cache]``: by what the last-level cache is divided (``auto``: ways, else colours if they are
    confirmed), what percentage of it no domain gets, and its geometry where firmware says too little of it."""

    partition: str = OFF
    reserve: int = 0
    last: Cache | None = None

    def __post_init__(self) -> None:
        check(self.partition in PARTITIONS, f"cache.partition must be one of {', '.join(PARTITIONS)}")
        check(type(self.reserve) is int and 0 <= self.reserve < 100, "cache.reserve must be a percentage, 0 to 99")


def _cache(table: Any, _folder: Path) -> CacheSettings:
    check(isinstance(table, dict), "cache must be a table")
    own = {key: value for key, value in table.items() if key in ("partition", "reserve")}
    geometry = {key: value for key, value in table.items() if key not in own}
    try:
        return CacheSettings(**own, last=configured(geometry) if geometry else None)
    except PartitionError as error:
        raise ConfigError(error.message, hint=error.hint) from error


def _suite(name: Any, _folder: Path) -> Suite:
    check(isinstance(name, str), "suite must be a text")
    return suite_named(name)


def _networks(tables: Any, _folder: Path) -> tuple[Network, ...]:
    check(isinstance(tables, dict), "networks must be a table: [networks.NAME]")
    return tuple(_network(name, table) for name, table in tables.items())


def _network(name: str, table: Any) -> Network:
    where = f"network {name[:40]}"
    check(bool(_NETWORK.fullmatch(name)), f"{where}: a name has 1 to 32 of a-z, 0-9 and -, with no - at either end")
    check(isinstance(table, dict) and set(table) <= {"bridge", "isolated", "cards"}, f"{where}: unknown setting")
    network = Network(name, table.get("bridge", ""), table.get("isolated", True), table.get("cards", Network.cards))
    named = isinstance(network.bridge, str) and _INTERFACE.fullmatch(network.bridge)
    check(bool(named) and network.bridge not in (".", ".."), f"{where}: bridge must name one of the host's")
    check(isinstance(network.isolated, bool), f"{where}: isolated must be true or false")
    check(type(network.cards) is int and 1 <= network.cards <= MAX_CARDS, f"{where}: cards must be 1 to {MAX_CARDS}")
    return network


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the file may say. Sizes are in bytes, times in seconds.

    ``guest_memory`` 0 means: what the machine has available when the daemon starts.
    ``vmm_cpus`` are the domains' processors, each one domain's alone, but for those of them that are ``shared_cpus``.
    ``message_rate`` is what two Realms may exchange, in bytes per second. ``networks`` are those that domains may name.
    ``brokers``: to which key brokers the daemon opens streams for Realms, each ``name:port``.
    ``signed_only``: Realms, too, need the platform owner's signature on their image.
    ``pci_devices`` are the devices that domains may have, by address or by vendor:device; those that cannot be reset
    between their owners are among them only with ``allow_unresettable_devices``.
    ``suite`` is what this host hashes, signs and encrypts with (``vambrace/suite.py``): images of attested domains are
    of it, too.
    ``insecure`` is empty or ``"no-trustzone"``; the latter uses software keys and every token says so.
    """

    certificate: Path
    key: Path
    client_ca: Path
    state: Path
    endorsement: Path
    vendor_root: Path
    listen: str = "0.0.0.0"
    port: int = 8443
    vmm_cpus: tuple[int, ...]
    shared_cpus: tuple[int, ...] = ()
    allow_affinity: bool = False
    brokers: tuple[str, ...] = ()
    pci_devices: tuple[str, ...] = ()
    allow_unresettable_devices: bool = False
    cgroups: Path = ROOT
    guest_memory: int = 0
    allow_debug: bool = False
    signed_only: bool = False
    suite: Suite = setting(_suite, default=NIST)
    insecure: str = ""
    image_limit: int = 4 << 30
    agent_seconds: int = 300
    vmm_seconds: int = 300
    channels: int = 8
    message_rate: int = 256 << 20
    cache: CacheSettings = setting(_cache, default_factory=CacheSettings)
    networks: tuple[Network, ...] = setting(_networks, default=())
    #: Where the devices are that domains get.
    devices: Path = internal(Path("/dev"))

    def __post_init__(self) -> None:
        check_range(self, 0, 65535, "port")
        check(self.insecure in ("", NO_TRUSTZONE), f'insecure must be absent or "{NO_TRUSTZONE}"')
        check(self.guest_memory >= 0, "guest_memory must not be negative")
        check(bool(self.vmm_cpus), "vmm_cpus must name a processor")
        check(all(0 <= cpu < 4096 for cpu in self.vmm_cpus), "vmm_cpus must name processors by number")
        for name in ("vmm_cpus", "shared_cpus"):
            cpus = getattr(self, name)
            check(len(set(cpus)) == len(cpus), f"{name} must name each processor once")
        check(set(self.shared_cpus) <= set(self.vmm_cpus), "shared_cpus must be some of vmm_cpus")
        bridges = [network.bridge for network in self.networks]
        check(len(set(bridges)) == len(bridges), "networks must have a bridge each: on one they are one network")
        for pattern in self.pci_devices:
            known = PATTERN.fullmatch(pattern) is not None
            check(known, f"pci_devices: {pattern[:40]!r} is neither an address nor vendor:device")
        for broker in self.brokers:
            check(_PLACE.fullmatch(broker) is not None, f"brokers: {broker[:60]!r} is not name:port")
        for name in ("image_limit", "agent_seconds", "vmm_seconds", "channels", "message_rate"):
            check(getattr(self, name) > 0, f"{name} must be positive")


def load_settings(path: Path) -> Settings:
    """Read the settings file at ``path``; raises ``ConfigError``."""
    return load(Settings, path, hint=_HINT, absent="give --config FILE", relative=False)


def parse_settings(table: dict[str, Any]) -> Settings:
    """Check one table of settings; raises ``ConfigError`` that names the key."""
    return parse(Settings, table, None, hint=_HINT)
