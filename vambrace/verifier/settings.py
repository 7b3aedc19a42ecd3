"""The service's settings: one TOML file, unknown keys refused; its paths are relative to it."""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from vambrace.errors import ConfigError

HINT = "docs/verification.md has every key"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the file may say.

    ``signing_key`` signs results; it is made at the first start if it is not there. ``policies`` is a folder with a
    policy in each ``NAME.toml``. ``rate`` are appraisals per second of one client, ``burst`` how many it may save.
    Beyond the machine itself the service speaks TLS only: ``certificate`` and ``key``, and with ``client_ca`` to those
    who show a certificate of that authority.
    """

    signing_key: Path
    policies: Path
    roots: tuple[Path, ...] = ()
    corims: tuple[Path, ...] = ()
    revocation_lists: tuple[Path, ...] = ()
    signers: tuple[Path, ...] = ()
    listen: str = "127.0.0.1"
    port: int = 8444
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    rate: int = 20
    burst: int = 40
    connections: int = 256
    connections_each: int = 16
    reload_seconds: int = 60

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("certificate and key belong together", hint=HINT)
        if self.client_ca is not None and self.certificate is None:
            raise ConfigError("client_ca needs certificate and key", hint=HINT)
        try:
            loopback = ipaddress.ip_address(self.listen).is_loopback
        except ValueError:
            raise ConfigError("listen is not an address", hint="such as 127.0.0.1, or 0.0.0.0 for all") from None
        if self.certificate is None and not loopback:
            raise ConfigError(
                f"the service does not listen on {self.listen} without TLS", hint="give certificate and key"
            )
        numbers = {"port": (0, 65535), "rate": (1, 10000), "burst": (1, 100000), "reload_seconds": (1, 86400)}
        numbers |= {"connections": (1, 100000), "connections_each": (1, 100000)}
        for name, (low, high) in numbers.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {low} to {high}", hint=HINT)


def load_settings(path: Path) -> Settings:
    """Read the file. Raises ``ConfigError``."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {str(error)[:200]}", hint=HINT) from None
    known = {field.name: field for field in fields(Settings)}
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f"{path}: unknown key {unknown[0][:40]!a}", hint=HINT)
    missing = sorted(name for name, field in known.items() if field.default is MISSING and name not in table)
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is missing", hint=HINT)
    values = {name: _value(known[name].type, name, value, path.parent) for name, value in table.items()}
    return Settings(**values)


def _value(kind: Any, name: str, value: Any, base: Path) -> Any:
    """A value of the file as the field's annotation (a text) wants it."""
    match kind, value:
        case ("Path" | "Path | None"), str():
            return base / value
        case "tuple[Path, ...]", list() if all(isinstance(item, str) for item in value):
            return tuple(base / item for item in value)
        case "str", str():
            return value
        case "int", int() if not isinstance(value, bool):
            return value
        case _:
            raise ConfigError(f"{name} is of a wrong type", hint=HINT)
