"""What a Python project requires (PEP 508, one a line as pip reads them), and what of it holds in the guest.

pip chooses wheels for another machine, but judges environment markers by the Python that it runs on. So markers are
judged here, of the project's requirements and of what its wheels require.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vambrace.errors import ConfigError

_MAX_FILE: Final = 1 << 20
_MAX_FILES: Final = 20
_HASH = re.compile(r"\s--hash[= ](sha256:[0-9a-f]{64})")
_INCLUDE = re.compile(r"(?:-r|--requirement)[= ]?\s*(\S+)")


@dataclass(frozen=True)
class Wanted:
    """A requirement of the project; its wheel must have one of ``hashes`` (hex), where there are some."""

    requirement: Requirement
    hashes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)


@dataclass(frozen=True)
class Wheel:
    """One that pip has chosen: its canonical name, version, SHA-256 (hex), and what it ``requires`` in its turn."""

    name: str
    version: str
    sha256: str
    requires: Sequence[str] = field(default=(), compare=False)


def guest_markers(version: str) -> dict[str, str]:
    """The environment of the guest, whose Python is of ``version`` (3.13): names of PEP 508's environment markers."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{version}.0",
        "os_name": "posix",
        "platform_machine": "aarch64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
    }


def read_requirements(path: Path, markers: Mapping[str, str]) -> list[Wanted]:
    """Those of the file at ``path`` that hold under ``markers``. Raises ``ConfigError`` with the line."""
    found: list[Wanted] = []
    for where, text in _lines(path, set()):
        hashes = frozenset(each.removeprefix("sha256:") for each in _HASH.findall(text))
        try:
            requirement = Requirement(_HASH.sub("", text).strip())
        except InvalidRequirement:
            raise ConfigError(
                f"{where}: {text[:60]!r} is no requirement",
                hint="names with versions, such as numpy>=2; no options or paths",
            ) from None
        if requirement.url:
            raise ConfigError(f"{where}: {requirement.name} comes from a URL", hint="name it with a version")
        if holds(requirement, markers):
            found.append(Wanted(requirement, hashes))
    return found


def holds(requirement: Requirement, markers: Mapping[str, str], extras: Iterable[str] = ()) -> bool:
    """Whether ``requirement`` is one under ``markers``, of a project that is wanted with ``extras``."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**markers, "extra": extra}) for extra in ("", *extras))


def plain(requirement: Requirement) -> str:
    """``requirement`` without its marker, which has been judged."""
    bare = Requirement(str(requirement))
    bare.marker = None
    return str(bare)


def closure(
    wanted: Sequence[Wanted], wheels: Mapping[str, Wheel], markers: Mapping[str, str]
) -> tuple[list[Wheel], list[Requirement]]:
    """What of ``wheels`` (by canonical name) the guest needs for ``wanted``, and the requirements that none meets."""
    needed: dict[str, Wheel] = {}
    missing: dict[str, Requirement] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [each.requirement for each in wanted]
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        wheel = wheels.get(name)
        if wheel is None or not requirement.specifier.contains(wheel.version, prereleases=True):
            missing[plain(requirement)] = requirement
            continue
        needed[name] = wheel
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        todo += [each for each in map(Requirement, wheel.requires) if holds(each, markers, extras)]
    return sorted(needed.values(), key=lambda wheel: wheel.name), list(missing.values())


def _lines(path: Path, seen: set[Path]) -> Iterable[tuple[str, str]]:
    """Where it stands, and the text, of each line of ``path`` and of the files that it includes."""
    if path in seen or len(seen) >= _MAX_FILES:
        raise ConfigError(f"{path}: includes itself, or too many files", hint="put the requirements into one file")
    seen.add(path)
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ConfigError(f"{path}: too large for a list of requirements", hint="one requirement a line")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="paths are relative to the file that names them") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text", hint="one requirement a line") from None
    except ValueError:
        raise ConfigError(f"{path}: no name of a file", hint="correct the name behind -r") from None
    whole = ""
    for number, line in enumerate(text.splitlines(), 1):
        whole += " " + re.sub(r"(^|\s)#.*$", "", line).strip()
        if whole.endswith("\\"):
            whole = whole[:-1]
            continue
        whole, entry = "", whole.strip()
        include = _INCLUDE.fullmatch(entry)
        if include:
            yield from _lines(path.parent / include[1], seen)
        elif entry:
            yield f"{path}, line {number}", entry
