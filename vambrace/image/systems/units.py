"""Whether a disk has the units that are applications: told when it is built, not when it runs (systemd.unit(5)).

What cannot be known stays for the Realm to find out: file systems that are not read here, generators of the disk's own.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Iterable
from typing import BinaryIO, Final

from vambrace.application import Application
from vambrace.errors import ConfigError
from vambrace.image.systems.contents import Contents, Unreadable, open_contents

#: Where systemd looks, the first one first.
FOLDERS: Final = (
    *("/etc/systemd/system.control", "/etc/systemd/system"),
    *("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"),
)
#: Programs that make units when a system starts: of these two folders they are not the distribution's.
_GENERATORS: Final = ("/etc/systemd/system-generators", "/usr/local/lib/systemd/system-generators")
_SCRIPTS: Final = "/etc/init.d"  # each one of System V's is a unit
THERE, MASKED, MISSING = "there", "masked", "missing"


def check_units(file: BinaryIO, kind: str, applications: Iterable[Application]) -> None:
    """Raises ``ConfigError`` if a unit of ``applications`` is not in the file system ``kind`` in ``file``."""
    try:
        contents = open_contents(file, kind)
        if any(_names(contents, folder) for folder in _GENERATORS):
            return
        states = [(one, _state(contents, one.unit)) for one in applications]
        known = {name for folder in FOLDERS for name in _names(contents, folder)}
    except (Unreadable, struct.error, RecursionError):
        return
    for application, state in states:
        where = f"application {application.name}: {application.unit[:80]}"
        if state == MASKED:
            raise ConfigError(f"{where} is masked on the disk", hint="systemctl unmask it there, or name another unit")
        if state == MISSING:
            near = difflib.get_close_matches(application.unit, sorted(known), 3)
            hint = f"perhaps {', '.join(near)}" if near else "install it there; 'systemctl list-unit-files' shows all"
            raise ConfigError(f"{where}: no such unit on the disk", hint=hint)


def _state(contents: Contents, unit: str) -> str:
    for name in (unit, _template(unit)):
        for folder in FOLDERS if name else ():
            path = f"{folder}/{name}"
            entry = contents.find(path, follow=False)
            if entry is None:
                continue
            if entry.is_link and contents.data(entry) == b"/dev/null":
                return MASKED
            found = contents.find(path)
            if found is not None and not found.is_folder:
                return THERE if found.size else MASKED
    script = contents.find(f"{_SCRIPTS}/{unit.removesuffix('.service')}")
    return MISSING if script is None or script.is_folder else THERE


def _template(unit: str) -> str:
    """Of an instance; empty for what is none."""
    name, at, rest = unit.partition("@")
    return f"{name}@.service" if at and rest != ".service" else ""


def _names(contents: Contents, folder: str) -> list[str]:
    found = contents.find(folder)
    if found is None or not found.is_folder:
        return []
    names = (name.decode("utf-8", "replace") for name in contents.names(found))
    return [name for name in names if name not in (".", "..") and name.isprintable()]
