"""``broker.toml``: the broker's settings; paths are relative to its folder.

::

    listen = "127.0.0.1"
    port = 8444
    certificate = "server.pem"          of the broker's own: Realms have it in their measured configuration
    key = "server.key"
    master_key = "master.key"           decrypts what the database holds; back both up, apart from each other
    database = "sqlite:///broker.db"    or postgresql+psycopg://USER@HOST/NAME
    anchor = "log.anchor"               where the log's end is kept: best on another disk than the database's
    challenge_seconds = 60              how long a Realm has to answer
    session_seconds = 300               how long its answer counts
    rate = 100                          requests per second of one client: an address, of IPv6 a network of 64 bits
    connections = 512                   in all
    connections_each = 128              of one client: all Realms of a host come from there

    [platforms.default]
    root = "vendor-root.pem"
    references = "reference-values.corim"
    revocation = ["vendor.crl"]         revocation lists, if there are any

    [repositories.patients]
    owners = ["owner.pem"]              who may store secrets there, by certificate
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.chain import UNREADABLE
from vambrace.broker.names import ResourceName
from vambrace.broker.platforms import NAME, PlatformFiles
from vambrace.errors import ConfigError, UsageError
from vambrace.serving.settings import check, check_range, load, parse, setting

FILE: Final = "broker.toml"
PORT: Final = 8444
_HINT: Final = "correct the broker's settings; docs/broker.md has all of them"
_SQLITE: Final = "sqlite:///"


def _database(url: Any, folder: Path) -> str:
    """The URL, of SQLite with a file in ``folder``."""
    check(isinstance(url, str), "database must be a text")
    return _SQLITE + str(folder / url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else str(url)


def _platforms(value: Any, folder: Path) -> dict[str, PlatformFiles]:
    tables = _tables(value, "platforms")
    return {name: _platform(name, table, folder) for name, table in tables.items()}


def _repositories(value: Any, folder: Path) -> dict[str, frozenset[bytes]]:
    tables = _tables(value, "repositories")
    return {name: _repository(name, table, folder) for name, table in tables.items()}


def _tables(value: Any, key: str) -> dict[str, dict[str, Any]]:
    whole = isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())
    check(whole, f"{key} is a table of tables: [{key}.NAME]")
    return dict(value)


def _platform(name: str, table: dict[str, Any], folder: Path) -> PlatformFiles:
    where = f"platform {name[:40]}"
    check(bool(NAME.fullmatch(name)), f"{where}: a name has a-z, 0-9 and -, with no - at either end")
    check(set(table) <= {"root", "references", "revocation", "insecure"}, f"{where}: unknown setting")
    check(isinstance(table.get("root"), str), f"{where}: root is the vendor's certificate")
    revocation = table.get("revocation", [])
    listed = isinstance(revocation, list) and all(isinstance(name, str) for name in revocation)
    check(listed, f"{where}: revocation is a list of files")
    lists = tuple(folder / name for name in revocation)
    if "references" not in table:
        # Left out by mistake it would mean trust in anything.
        check(table.get("insecure") is True, f"{where}: references are missing")
        return PlatformFiles(folder / table["root"], None, lists)
    check(isinstance(table["references"], str), f"{where}: references is the vendor's file of them")
    check("insecure" not in table, f"{where}: an insecure platform has no reference values")
    return PlatformFiles(folder / table["root"], folder / table["references"], lists)


def _repository(name: str, table: dict[str, Any], folder: Path) -> frozenset[bytes]:
    where = f"repository {name[:40]}"
    try:
        ResourceName(name, "secret", "name")
    except UsageError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
    owners = table.get("owners")
    check(set(table) == {"owners"} and isinstance(owners, list) and bool(owners), f"{where}: owners are its all")
    assert isinstance(owners, list)
    return frozenset(_certificate(folder / str(owner), where) for owner in owners)


def _certificate(path: Path, where: str) -> bytes:
    """What an owner shows in TLS: of the certificates that 'vambrace owner show' prints the last."""
    hint = "what 'vambrace owner show' prints"
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[-1]
        certificate.public_key()
    except OSError as error:
        raise ConfigError(f"{where}: {path}: {error.strerror}", hint=hint) from error
    except UNREADABLE as error:
        unusable = isinstance(error, UnsupportedAlgorithm)
        kind = "the certificate of a key that TLS cannot use" if unusable else "no certificate"
        raise ConfigError(f"{where}: {path} is {kind}", hint=hint) from None
    return certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``repositories`` has the certificates (DER) of each one's owners."""

    certificate: Path
    key: Path
    master_key: Path
    database: str = setting(_database)
    platforms: Mapping[str, PlatformFiles] = setting(_platforms)
    repositories: Mapping[str, frozenset[bytes]] = setting(_repositories)
    anchor: Path | None = None
    listen: str = "127.0.0.1"
    port: int = PORT
    challenge_seconds: int = 60
    session_seconds: int = 300
    rate: int = 100
    connections: int = 512
    connections_each: int = 128

    def __post_init__(self) -> None:
        check_range(self, 0, 65535, "port")
        numbers = ("challenge_seconds", "session_seconds", "rate", "connections", "connections_each")
        check_range(self, 1, 1_000_000, *numbers)

    @property
    def owners(self) -> frozenset[bytes]:
        """Every certificate that somebody may administer with."""
        return frozenset().union(*self.repositories.values())


def load_settings(path: Path) -> Settings:
    """Read the file at ``path``, or ``broker.toml`` in that folder. Raises ``ConfigError``."""
    path = path / FILE if path.is_dir() else path
    return load(Settings, path.resolve(), hint=_HINT, absent="'vambrace broker init' makes a broker's folder")


def parse_settings(table: dict[str, Any], folder: Path) -> Settings:
    """Check one table of settings. Raises ``ConfigError``, which names the key."""
    return parse(Settings, table, folder, hint=_HINT)
