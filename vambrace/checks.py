"""Values of a configuration or manifest, checked. Each raises ``ConfigError`` that names ``where`` it stands.

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Final

from vambrace.canonical import BUILD_AGAIN
from vambrace.errors import ConfigError, UsageError

MAX_STRING: Final = 4096
MAX_ITEMS: Final = 256

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


def check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what}: {str(name)[:40]!r} is not a valid name",
            hint="1 to 32 of a-z, 0-9 and -, with no - at either end",
        )


def check_domain_name(name: object) -> None:
    """For the name that a call gives a domain, in place of the configuration's. Raises ``UsageError``."""
    try:
        check_name(name, "domain")
    except ConfigError as error:
        raise UsageError(error.message, hint=error.hint) from None


def check_integer(value: object, least: int, most: int, where: str, unit: str = "") -> None:
    if type(value) is not int:
        raise ConfigError(f"{where}: a whole number is expected", hint=f"from {least} to {most}{unit}")
    if not least <= value <= most:
        raise ConfigError(f"{where} is {str(value)[:24]}{unit}", hint=f"from {least} to {most}{unit}")


def check_size(value: object, least: int, most: int, where: str) -> None:
    """A size in bytes, which people write in MiB."""
    bounds = f'from {least >> 20} to {most >> 20} MiB, written like "128M"'
    if type(value) is not int:
        raise ConfigError(f"{where}: a whole number is expected", hint=bounds)
    if not least <= value <= most:
        raise ConfigError(f"{where} is {str(value)[:24]} bytes", hint=bounds)


def check_choice(value: object, choices: Sequence[str], where: str) -> None:
    if value not in choices:
        raise ConfigError(f"{where}: {str(value)[:40]!r} is not known", hint="one of " + ", ".join(choices))


def check_below(path: object, folder: str, where: str, *, itself: bool = False) -> None:
    """``path`` must be absolute, normal (no ``..``, no ``//``) and below ``folder``."""
    check_text(path, where)
    assert isinstance(path, str)
    inside = path.startswith(folder + "/") or (itself and path == folder)
    if not inside or posixpath.normpath(path) != path:
        raise ConfigError(
            f"{where}: {path[:60]!r} is outside {folder}",
            hint=f"an absolute path below {folder}, without . and ..",
        )


def check_absolute(path: object, where: str) -> None:
    """``path`` must be absolute and normal: no ``.``, ``..`` or ``//`` in it."""
    check_text(path, where)
    assert isinstance(path, str)
    if not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path:
        raise ConfigError(f"{where}: {path[:60]!r} is not a whole path", hint="from / on, without . and ..")


def check_text(value: object, where: str, most: int = MAX_STRING) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: a string is expected", hint='put it in quotation marks')
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{where}: not valid Unicode", hint="write it in UTF-8") from None
    if length > most:
        raise ConfigError(f"{where}: longer than {most} bytes", hint="make it shorter")
    if "\0" in value:
        raise ConfigError(f"{where}: contains a NUL character", hint="take it out")


def check_strings(value: object, where: str) -> None:
    if not isinstance(value, tuple) or len(value) > MAX_ITEMS:
        raise ConfigError(f"{where}: a list of strings is expected", hint=f"at most {MAX_ITEMS} of them")


def check_boolean(value: object, where: str) -> None:
    if type(value) is not bool:
        raise ConfigError(f"{where}: true or false is expected", hint="without quotation marks")


def check_hex(value: object, length: int | None, where: str) -> None:
    if not isinstance(value, str) or not _HEX.fullmatch(value) or len(value) > 512:
        raise ConfigError(f"{where}: lower-case hexadecimal digits are expected", hint=BUILD_AGAIN)
    if length is not None and len(value) != 2 * length:
        raise ConfigError(f"{where}: {2 * length} hexadecimal digits are expected", hint=BUILD_AGAIN)


def check_unique(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what} {name}: appears twice", hint="name it once")
        seen.add(name)
