"""The user's state directory: hosts, owner identity, and what the user knows about each Realm.

    hosts.toml                     the hosts, and which one is current
    owner/{key,certificate}.pem    the owner's identity (vambrace.attest.owner)
    domains/<uuid>/state.json       a DomainState
    domains/<uuid>/config.json      the measured configuration the user expects
    domains/<uuid>/token.cbor       the launch token, once it was verified

``VAMBRACE_HOME``, else ``$XDG_STATE_HOME/vambrace``, else ``~/.local/state/vambrace``. Everything is 0600 in
0700, written aside and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.errors import ConfigError, NotFound, UsageError
from vambrace.files import write_whole

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62})")


@dataclass(frozen=True)
class HostEntry:
    """One host of ``hosts.toml``: its URL, and paths of what is needed to reach it and to trust it.

    ``revocation_list`` is its vendor's, where there is one.
    """

    url: str
    certificate: str
    key: str
    ca: str
    vendor_root: str = ""
    references: str = ""
    revocation_list: str = ""


@dataclass(frozen=True)
class DomainState:
    """What the user must remember of one Realm. Nothing in it is taken from the host unverified.

    ``host`` is its URL; ``measurement`` (the expected one) and ``nonce`` (the user's own) are hexadecimal;
    ``instance`` is empty until the launch token was verified.
    """

    uuid: str
    name: str
    host: str
    image: str
    nonce: str
    measurement: str
    instance: str = ""
    created: float = 0.0


class Context:
    """Raises ``ConfigError`` where a file of the user's is damaged, ``UsageError`` where one is missing."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or default_home()
        self.owner = self.home / "owner"
        self.domains = self.home / "domains"

    # Hosts

    def hosts(self) -> tuple[str, dict[str, HostEntry]]:
        """The current host's name ("" for none), and every host by name."""
        path = self.home / "hosts.toml"
        try:
            table = tomllib.loads(path.read_text())
        except FileNotFoundError:
            return "", {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", hint="correct it, or remove it") from error
        entries = {}
        known = {field.name for field in dataclasses.fields(HostEntry)}
        hosts = table.get("hosts", {})
        for name, values in hosts.items() if isinstance(hosts, dict) else ():
            if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
                raise ConfigError(f"{path}: host {name} is not a table of strings", hint="correct the file")
            if unknown := set(values) - known:
                raise ConfigError(f"{path}: host {name}: unknown key {min(unknown)}", hint="correct the file")
            try:
                entries[name] = HostEntry(**values)
            except TypeError as error:
                raise ConfigError(f"{path}: host {name} is not complete", hint="correct the file") from error
        current = table.get("current", "")
        return (current if isinstance(current, str) else ""), entries

    def host_name(self, name: str | None = None) -> str:
        """Which host is meant: ``name``, or the one in ``VAMBRACE_HOST``, or the current one; "" for none."""
        return name or os.environ.get("VAMBRACE_HOST") or self.hosts()[0]

    def host(self, name: str | None = None) -> tuple[str, HostEntry]:
        """The host called ``name``, or the one in ``VAMBRACE_HOST``, or the current one."""
        wanted, entries = self.host_name(name), self.hosts()[1]
        if not wanted:
            raise UsageError("no host is set up", hint=f"add one to {self.home / 'hosts.toml'}")
        if wanted not in entries:
            known = ", ".join(sorted(entries)) or "none"
            raise UsageError(f"no host is called {wanted}", hint=f"known hosts: {known}")
        return wanted, entries[wanted]

    def add_host(self, name: str, entry: HostEntry, *, current: bool = True) -> None:
        """Add or replace a host, and make it the current one."""
        if not HOST_NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a host", hint="use a-z, 0-9, dots and hyphens")
        with self.locked():
            before, entries = self.hosts()
            entries[name] = entry
            lines = [f"current = {toml_string(name if current or not before else before)}"]
            for key, value in sorted(entries.items()):
                lines += ["", f"[hosts.{toml_string(key)}]"]
                lines += [f"{k} = {toml_string(v)}" for k, v in dataclasses.asdict(value).items() if v]
            self.write("hosts.toml", ("\n".join(lines) + "\n").encode())

    # Realms

    def save_domain(self, state: DomainState, config: bytes | None = None, token: bytes | None = None) -> None:
        """Keep ``state``, and the configuration and the verified token where they are given."""
        folder = f"domains/{self._uuid(state.uuid)}"
        if config is not None:
            self.write(f"{folder}/config.json", config)
        if token is not None:
            self.write(f"{folder}/token.cbor", token)
        self.write(f"{folder}/state.json", json.dumps(dataclasses.asdict(state), indent=1).encode())

    def domain(self, uuid: str) -> DomainState:
        """What is known about the Realm ``uuid``; ``NotFound`` if it was not started from here."""
        return self._state(self.domains / self._uuid(uuid) / "state.json")

    def domain_file(self, uuid: str, name: str) -> bytes:
        """``config.json`` or ``token.cbor`` of a Realm; ``NotFound`` if there is none."""
        try:
            return (self.domains / self._uuid(uuid) / name).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(
                f"nothing is kept of Realm {uuid}", hint="use the machine that started it, or VAMBRACE_HOME"
            ) from error

    def all_domains(self) -> list[DomainState]:
        """Every Realm started from here, oldest first."""
        states = [self._state(path) for path in self.domains.glob("*/state.json")]
        return sorted(states, key=lambda state: state.created)

    def tokens_seen(self, but: str) -> frozenset[bytes]:
        """SHA-256 of the verified launch tokens of every Realm started from here, except ``but``'s."""
        paths = [path for path in self.domains.glob("*/token.cbor") if path.parent.name != but]
        return frozenset(hashlib.sha256(path.read_bytes()).digest() for path in paths)

    def forget_domain(self, uuid: str) -> None:
        shutil.rmtree(self.domains / self._uuid(uuid), ignore_errors=True)

    def next_counter(self, uuid: str) -> int:
        """A number greater than any before for this Realm: microseconds since 1970, or the last one plus one.

        Time makes numbers from several machines of one owner rise together; the file makes them rise on one
        machine whose clock was set back.
        """
        name = f"domains/{self._uuid(uuid)}/counter"
        with self.locked():
            try:
                last = int((self.home / name).read_text())
            except (FileNotFoundError, ValueError):
                last = 0
            counter = max(last + 1, time.time_ns() // 1000)
            self.write(name, str(counter).encode())
        return counter

    # Files

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the state directory as a whole or not at all. Raises ``ConfigError``."""
        path = self.home / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}", hint="make room there, or name another VAMBRACE_HOME"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of the same user out."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{self.home} cannot be used: {error.strerror}", hint="make room there, or name another VAMBRACE_HOME"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _uuid(self, uuid: str) -> str:
        if not UUID.fullmatch(uuid):
            raise UsageError(f"{uuid!r} is not the identifier of a Realm", hint="see 'vambrace ps'")
        return uuid

    def _state(self, path: Path) -> DomainState:
        try:
            value: dict[str, Any] = json.loads(path.read_bytes())
            return DomainState(**value)
        except FileNotFoundError as error:
            raise NotFound(
                f"Realm {path.parent.name} was not started from here",
                hint="use the machine that started it, or VAMBRACE_HOME",
            ) from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged", hint="remove its folder") from error


def default_home() -> Path:
    """The state directory that the environment asks for."""
    if home := os.environ.get("VAMBRACE_HOME"):
        return Path(home).absolute()
    if base := os.environ.get("XDG_STATE_HOME"):
        return Path(base) / "vambrace"
    return Path.home() / ".local" / "state" / "vambrace"


def toml_string(text: str) -> str:
    """``text`` as a TOML basic string; refuses control characters."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UsageError(f"{text!r} has control characters", hint="use a plain path or URL")
    return json.dumps(text, ensure_ascii=False)
