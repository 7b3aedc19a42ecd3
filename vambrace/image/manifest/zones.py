"""Memory in a manifest: how much of it, how much of that is encrypted, and how much of that devices may reach."""

from __future__ import annotations

import re
from typing import Final

from vambrace.application import SYSTEM
from vambrace.classes import DomainClass
from vambrace.config import (
    MIN_APPLICATION_MEMORY,
    MIN_SYSTEM_MEMORY,
    PAGE,
    Zone,
    check_memory,
    check_percent,
    check_pins,
    window_bytes,
)
from vambrace.errors import ConfigError
from vambrace.image.manifest.lines import Mapping

SYSTEM_MEMORY: Final = 384 << 20
APPLICATION_MEMORY: Final = 128 << 20
PERCENT: Final = 80
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MEMORY = re.compile(r"([0-9]{1,15})([KMG]?)(?:i?B)?")


def parse_memory(text: str | int) -> int:
    """Bytes of ``"128M"``, ``"1G"`` or a number of bytes. Raises ``ConfigError``."""
    match = _MEMORY.fullmatch(str(text))
    if match is None:
        raise ConfigError(f"{str(text)[:20]!r} is no size of memory", hint='for example "128M" or "1G"')
    return int(match[1]) * _UNITS[match[2]]


def read_memory(item: Mapping, default: int, least: int, where: str) -> int:
    """Bytes. Raises ``ConfigError``."""
    with item.at("memory"):
        memory = parse_memory(item.scalar("memory", default))
        check_memory(memory, least, where)
        return memory


def read_zone(item: Mapping, name: str, kind: DomainClass, *, pinning: bool) -> Zone:
    """The zone of the application ``name``; with ``pinning``, there are devices. Raises ``ConfigError``."""
    where = f"application {name}"
    memory = read_memory(item, APPLICATION_MEMORY, MIN_APPLICATION_MEMORY, where)
    percent = _percent(item, where) if kind.encrypted else 0
    pins = _default_pins(_pins(item, memory, percent, where), memory, percent, pinning)
    return Zone(name, memory, percent, pins=pins)


def read_system_zone(top: Mapping, kind: DomainClass, highest: int, *, pinning: bool) -> Zone:
    """The system's zone, which is at the ``highest`` percentage of the applications' unless it has its own. Raises
    ``ConfigError``."""
    system = top.map("system")
    memory, percent, follow, pins = SYSTEM_MEMORY, highest, kind.encrypted, None
    if system is not None:
        memory = read_memory(system, SYSTEM_MEMORY, MIN_SYSTEM_MEMORY, "system")
        if kind.encrypted and "percent" in system:
            percent, follow = _percent(system, "system"), False
        pins = _pins(system, memory, percent, "system")
        system.done()
    return Zone(SYSTEM, memory, percent, follow, _default_pins(pins, memory, percent, pinning))


def _percent(item: Mapping, where: str) -> int:
    with item.at("percent"):
        percent = item.integer("percent", PERCENT)
        check_percent(percent, where)
        return percent


def _pins(item: Mapping, memory: int, percent: int, where: str) -> int | None:
    """Bytes that devices may reach; None where the manifest leaves that to us."""
    with item.at("pins"):
        if "pins" not in item:
            item.scalar("pins", 0)  # known all the same
            return None
        pins = parse_memory(item.scalar("pins"))
        check_pins(pins, memory, percent, where)
        return pins


def _default_pins(pins: int | None, memory: int, percent: int, pinning: bool) -> int:
    """A quarter of what may be plaintext, where there are devices."""
    if pins is not None:
        return pins
    return window_bytes(memory, percent) // 4 // PAGE * PAGE if pinning else 0
