"""What an image says of how it is run (OCI image specification, "Image Configuration"; Docker's ``Healthcheck``)."""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vambrace.container import MAX_ID, MAX_MILLISECONDS, MAX_RETRIES, Health
from vambrace.errors import ImageError
from vambrace.image.containers.source import ARCHITECTURE

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL: Final = ("/bin/sh", "-c")
_MAX_ACCOUNTS: Final = 1 << 20  # bytes of passwd or group
_REALTIME: Final = 34  # SIGRTMIN, as glibc has it
_AGAIN: Final = "build the image again"

#: Reads a file of the image, by its path and the most bytes that it may have; empty where there is none.
Read = Callable[[str, int], bytes]


@dataclass(frozen=True)
class User:
    """Whom processes run as, by number, and the home folder."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True)
class ImageSettings:
    """``ports`` are those that the image says it serves on, TCP only: a hint."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    user: str
    stop_signal: int
    health: Health | None
    ports: tuple[int, ...]


def read_settings(image: dict[str, Any]) -> ImageSettings:
    """The settings of a decoded configuration. Raises ``ImageError`` for another platform's, or a damaged one."""
    platform = f"{image.get('os')}/{image.get('architecture')}"[:80]
    if platform != f"linux/{ARCHITECTURE}":
        raise ImageError(f"the image is for {platform!r}", hint=f"a Realm runs linux/{ARCHITECTURE}: give that one")
    config = image.get("config") or {}
    if not isinstance(config, dict):
        raise _damaged("config")
    directory = _string(config, "WorkingDir") or "/"
    if not directory.startswith("/"):
        directory = "/" + directory
    return ImageSettings(
        entrypoint=_strings(config, "Entrypoint"),
        command=_strings(config, "Cmd"),
        environment=_environment(config),
        directory="/" + posixpath.normpath(directory).lstrip("/"),
        user=_string(config, "User"),
        stop_signal=parse_signal(_string(config, "StopSignal") or "SIGTERM"),
        health=_health(config.get("Healthcheck")),
        ports=_ports(config.get("ExposedPorts")),
    )


def find_user(text: str, read: Read) -> User:
    """Whom ``user``, ``user:group`` or nothing stands for, by name or number, in the image's passwd and group.

    As runtimes do it: a number need not be in passwd, further groups come with a user only where no group is named.
    Raises ``ImageError`` for who is not there.
    """
    name, colon, group = text.partition(":")
    name = name or "0"
    number = _identity(name)
    passwd = _accounts(read("/etc/passwd", _MAX_ACCOUNTS), 7)
    entry = next((f for f in passwd if f[0] == name), None)
    if entry is None and number is not None:
        entry = next((f for f in passwd if _identity(f[2]) == number), None)
    if entry is None and number is None:
        raise ImageError(f"the image has no user {name[:40]!r}", hint="name one of its /etc/passwd, or a number")
    uid = number if entry is None or number is not None else _identity(entry[2])
    gid = _identity(entry[3]) if entry else 0
    home = (entry[5] if entry else "") or "/"
    if uid is None or gid is None:
        raise ImageError("the image's /etc/passwd has an impossible number", hint=f"those up to {MAX_ID} are possible")
    if not colon:
        members = _accounts(read("/etc/group", _MAX_ACCOUNTS), 4) if entry else []
        groups = [_identity(f[2]) for f in members if entry and entry[0] in f[3].split(",")]
        return User(uid, gid, tuple(sorted({gid, *(found for found in groups if found is not None)})), home)
    named = _group(group, read)
    return User(uid, named, (named,), home)


def parse_signal(text: str) -> int:
    """The number of ``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3``. Raises ``ImageError``."""
    name = text.upper()
    if name.isascii() and name.isdigit() and len(name) < 3 and 1 <= int(name) <= 64:
        return int(name)
    name = name if name.startswith("SIG") else f"SIG{name}"
    if match := re.fullmatch(r"SIGRTM(IN\+|AX-)([0-9]{1,2})", name):
        number = _REALTIME + int(match[2]) if match[1] == "IN+" else 64 - int(match[2])
        if _REALTIME <= number <= 64:
            return number
    try:
        return signal.Signals[name].value
    except KeyError:
        raise ImageError(f"{text[:40]!r} is no signal", hint="for example SIGTERM, or its number") from None


def _group(group: str, read: Read) -> int:
    number = _identity(group)
    for fields in _accounts(read("/etc/group", _MAX_ACCOUNTS), 4):
        if fields[0] == group and (found := _identity(fields[2])) is not None:
            return found
    if number is None:
        raise ImageError(f"the image has no group {group[:40]!r}", hint="name one of its /etc/group, or a number")
    return number


def _accounts(data: bytes, columns: int) -> list[list[str]]:
    """The lines of passwd or group that have their columns."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return [fields for fields in (line.split(":") for line in lines) if len(fields) == columns]


def _identity(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= MAX_ID:
        return int(text)
    return None


def _environment(config: dict[str, Any]) -> dict[str, str]:
    found = {"PATH": PATH}
    for line in _strings(config, "Env"):
        name, _, value = line.partition("=")
        if name:
            found[name] = value
    return found


def _health(value: object) -> Health | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _damaged("Healthcheck")
    test = _strings(value, "Test")
    if not test or test[0] == "NONE":
        return None
    if test[0] not in ("CMD", "CMD-SHELL") or len(test) < 2:
        raise _damaged("Healthcheck")
    return Health(
        command=test[1:] if test[0] == "CMD" else (*SHELL, test[1]),
        interval=_milliseconds(value, "Interval", Health.interval),
        timeout=_milliseconds(value, "Timeout", Health.timeout),
        start_period=_milliseconds(value, "StartPeriod", Health.start_period),
        retries=min(_number(value, "Retries") or Health.retries, MAX_RETRIES),
    )


def _milliseconds(value: dict[str, Any], key: str, default: int) -> int:
    """Nanoseconds in the image; one millisecond at least, of what is not zero."""
    given = _number(value, key)
    if not given:
        return default
    return min(max(1000 if key != "StartPeriod" else 1, given // 1_000_000), MAX_MILLISECONDS)


def _ports(value: object) -> tuple[int, ...]:
    """Keys such as ``5432/tcp``, ``5432`` alone too."""
    found = set()
    for key in value if isinstance(value, dict) else ():
        port, _, protocol = key.partition("/")
        if port.isascii() and port.isdigit() and len(port) < 6 and protocol in ("", "tcp") and 0 < int(port) < 65536:
            found.add(int(port))
    return tuple(sorted(found))


def _number(config: dict[str, Any], key: str) -> int:
    value = config.get(key) or 0
    if type(value) is not int or value < 0:
        raise _damaged(key)
    return value


def _string(config: dict[str, Any], key: str) -> str:
    value = config.get(key) or ""
    if not isinstance(value, str) or "\0" in value or len(value) > 4096:
        raise _damaged(key)
    return value


def _strings(config: dict[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    if isinstance(value, str):  # as very old tools wrote it
        value = [*SHELL, value]
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise _damaged(key)
    return tuple(value)


def _damaged(key: str) -> ImageError:
    return ImageError(f"the image's configuration is damaged: {key}", hint=_AGAIN)
