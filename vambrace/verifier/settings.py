"""The verifier's settings; paths are relative to their file."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import ConfigError
from vambrace.serving.settings import check, check_range, load


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
    port: int = 8445
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    rate: int = 20
    burst: int = 40
    connections: int = 256
    connections_each: int = 16
    reload_seconds: int = 60

    def __post_init__(self) -> None:
        check((self.certificate is None) == (self.key is None), "certificate and key belong together")
        check(self.client_ca is None or self.certificate is not None, "client_ca needs certificate and key")
        try:
            loopback = ipaddress.ip_address(self.listen).is_loopback
        except ValueError:
            raise ConfigError("listen is not an address", hint="such as 127.0.0.1, or 0.0.0.0 for all") from None
        if self.certificate is None and not loopback:
            raise ConfigError(
                f"the service does not listen on {self.listen} without TLS", hint="give certificate and key"
            )
        check_range(self, 0, 65535, "port")
        check_range(self, 1, 10_000, "rate")
        check_range(self, 1, 100_000, "burst", "connections", "connections_each")
        check_range(self, 1, 86400, "reload_seconds")


def load_settings(path: Path) -> Settings:
    """Read the file. Raises ``ConfigError``."""
    return load(Settings, path, hint="docs/verification.md has every key", absent="check the path")
