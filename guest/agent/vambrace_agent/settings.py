"""What the Realm is to run: ``vambrace.json`` of the verified application disk.

The image builder writes it from the same source as the measured configuration, and the disk's verity root is
part of that configuration, so its contents are measured and not checked a second time.
"""

from __future__ import annotations

import base64
import json
import signal

#: Where applications ask the agent, which an environment variable tells them.
DESK = "/run/vambrace-agent"
#: Users and groups of a container. As many of the Realm's are its own, from index × IDENTITIES on; those of a
#: disk's system, of which there is one, from IDENTITIES on.
IDENTITIES = 1 << 24


class Health:
    """A container's health check; times in seconds."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.command: list[str] = fields["command"]
        self.interval: float = fields["interval"] / 1000
        self.timeout: float = fields["timeout"] / 1000
        self.start_period: float = fields["start_period"] / 1000
        self.retries: int = fields["retries"]


class Container:
    """What makes an application one; users and groups are those inside."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.disk: str = fields["disk"]
        self.uid: int = fields["uid"]
        self.gid: int = fields["gid"]
        self.groups: list[int] = fields["groups"]
        self.capabilities: list[str] = fields["capabilities"]
        self.stop_signal: int = fields["stop_signal"]
        self.stop_seconds: int = fields["stop_seconds"]
        self.processes: int = fields["processes"]
        self.files: int = fields["files"]
        self.health = Health(fields["health"]) if "health" in fields else None


class Application:
    """One application; ``index`` is its NUMA node. Its user and group are 1000 + index - 1; a container, or the
    system of units, has all ``IDENTITIES`` from ``identities`` on, and begins as ``uid``."""

    def __init__(self, index: int, fields: dict) -> None:  # type: ignore[type-arg]
        self.index = index
        self.name: str = fields["name"]
        self.command: list[str] = fields["command"]
        self.environment: dict[str, str] = fields["environment"]
        self.directory: str = fields["directory"]
        self.restarts: int = fields["restarts"]
        self.results: list[str] = fields["results"]
        self.memory: int = fields["memory"]
        self.ports: list[int] = [port["port"] for port in fields.get("ports", ())]
        self.registers: list[int] = fields.get("registers", [])
        #: The image with its files, where these are on a disk of their own.
        self.files: str = fields.get("files", "")
        self.container = Container(fields["container"]) if "container" in fields else None
        #: How long it may take to end, once it was asked to.
        self.stop_seconds: float = self.container.stop_seconds if self.container else 10
        #: Where it is one of systemd's, in the system of a disk.
        self.unit: str = fields.get("unit", "")
        self.identities = (1 if self.unit else index) * IDENTITIES
        self.uid = self.gid = 1000 + index - 1
        if self.container or self.unit:
            self.uid = self.identities + (self.container.uid if self.container else 0)
            self.gid = self.identities + (self.container.gid if self.container else 0)
        #: What is mounted for it alone once its disks are open: a folder, and where it finds that.
        self.mounts: list[tuple[str, str]] = []

    @property
    def results_directory(self) -> str:
        return "/results/" + self.name

    @property
    def stop_signal(self) -> int:
        """What it is asked to end with."""
        return self.container.stop_signal if self.container else signal.SIGTERM

    def owns(self, uid: int) -> bool:
        """Whether a user of the Realm is this application's, and so a process or socket of that user. The
        users of a disk's system are all of its units'."""
        if self.container or self.unit:
            return self.identities <= uid < self.identities + IDENTITIES
        return uid == self.uid



class System:
    """Of the VM form: the ``disk`` with a system, its ``filesystem``, and how many bytes may be written over it."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.disk: str = fields["disk"]
        self.filesystem: str = fields["filesystem"]
        self.writable: int = fields["writable"]


class Endpoint:
    """Where another Realm is reached or reaches this one: ``role`` is "connect" or "offer", ``port`` the loopback's."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.name: str = fields["name"]
        self.role: str = fields["role"]
        self.port: int = fields["port"]

    @property
    def variable(self) -> tuple[str, str]:
        """What tells a program where it is: name and value of an environment variable."""
        return "ENDPOINT_" + self.name.upper().replace("-", "_"), f"127.0.0.1:{self.port}"


class Network:
    """A network card; ``address`` with its prefix length and ``gateway`` may be empty."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.name: str = fields["name"]
        self.address: str = fields["address"]
        self.gateway: str = fields["gateway"]


class Device:
    """A PCI device. It has either ``code``, the beginning of its class code, or ``identity``, vendor:device. The
    ``application`` whose device it is, and the ``address`` of a network card, may be empty."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.name: str = fields["name"]
        self.code: str = fields["code"]
        self.identity: str = fields["identity"]
        self.application: str = fields["application"]
        self.address: str = fields["address"]

    def fits(self, code: str, identity: str) -> bool:
        """Whether a device with this class code and identity can be it."""
        return identity == self.identity if self.identity else code.startswith(self.code)


class Image:
    """A disk of the image, at ``device``: ``blocks`` of a file system, and the hash tree with this ``root`` and
    ``salt`` behind them. With a ``key``, the broker's name for it, all ``size`` bytes are encrypted."""

    def __init__(self, name: str, fields: dict) -> None:  # type: ignore[type-arg]
        self.name = name
        self.device: str = fields["device"]
        self.blocks: int = fields["blocks"]
        self.root: str = fields["root"]
        self.salt: str = fields["salt"]
        self.key: str = fields.get("key", "")
        self.size: int = fields.get("size", 0)


class Disk:
    """A disk to write to, that the guest knows by its ``serial``; ``size`` in bytes. ``key`` is the broker's name for a
    volume's key, or "sealed"; it is empty for scratch space."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.name: str = fields["name"]
        self.serial: str = fields["serial"]
        self.application: str = fields["application"]
        self.size: int = fields["size"]
        self.mount: str = fields["mount"]
        self.key: str = fields["key"]

    @property
    def title(self) -> str:
        return f"volume {self.name}" if self.key else f"scratch space of {self.application}"


class Secret:
    """What an application may ask for by ``name``; ``resource`` is the broker's name for it."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.name: str = fields["name"]
        self.application: str = fields["application"]
        self.resource: str = fields["resource"]


class BrokerPlace:
    """The broker of this Realm: ``certificate`` (PEM) says who it is."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.url: str = fields["url"]
        self.certificate: str = fields["certificate"]
        self.secrets = [Secret(item) for item in fields["secrets"]]


class Settings:
    """``owner`` is the DER form of the certificate of the only user that the agent serves; ``digests`` are names of
    hashes in ``hashlib``: for a key, and for a challenge."""

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.name: str = fields["name"]
        self.owner_pem: str = fields["owner"]
        self.owner = base64.b64decode("".join(self.owner_pem.splitlines()[1:-1]))
        self.hash: str = fields["hash"]
        self.digests: tuple[str, str] = tuple(fields["digests"])
        self.collect_seconds: int = fields["collect_seconds"]
        self.lasting: bool = fields["lasting"]  # a Secure VM: what the applications come to does not end it
        self.endpoints = [Endpoint(item) for item in fields.get("endpoints", ())]
        self.networks = [Network(item) for item in fields.get("networks", ())]
        self.devices = [Device(item) for item in fields.get("devices", ())]
        #: Of this image among its owner's, for what is sealed; None where nothing is.
        self.sealing: int | None = fields["sealing"]["version"] if "sealing" in fields else None
        self.broker = BrokerPlace(fields["broker"]) if "broker" in fields else None
        self.system = System(fields["system"]) if "system" in fields else None
        self.images = {name: Image(name, item) for name, item in fields.get("images", {}).items()}
        self.disks = [Disk(item) for item in fields.get("disks", ())]
        self.applications = [Application(i + 1, item) for i, item in enumerate(fields["applications"])]
        for application in self.applications:
            told = {"VAMBRACE_AGENT": DESK, **dict(endpoint.variable for endpoint in self.endpoints)}
            application.environment = {**told, **application.environment}


def load(path: str) -> Settings:
    """Read the settings at ``path``."""
    with open(path, encoding="utf-8") as file:
        return Settings(json.load(file))
