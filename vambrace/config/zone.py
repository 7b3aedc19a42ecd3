"""Memory with one encrypted percentage."""

from __future__ import annotations

from typing import Any, Final

from vambrace.application import SYSTEM
from vambrace.canonical import Object
from vambrace.checks import check_boolean, check_integer, check_name, check_size
from vambrace.classes import DomainClass
from vambrace.errors import ConfigError
from vambrace.record import Record

MEMORY_STEP: Final = 2 << 20
MIN_SYSTEM_MEMORY: Final = 96 << 20
MIN_APPLICATION_MEMORY: Final = 16 << 20
MAX_MEMORY: Final = 1 << 40  # all zones together: the guest's physical address space
PAGE: Final = 4096
MINIMUM_WINDOW, PIN_HEADROOM = 64, 16  # pages, as in core/window.h


class Zone(Record):
    """Memory with one encrypted percentage. ``memory`` in bytes; ``follow`` is for the system's zone only. ``pins``,
    bytes, is how much of it devices may reach at a time: that much stays plaintext meanwhile."""

    name: str
    memory: int
    percent: int
    follow: bool = False
    pins: int = 0

    def __post_init__(self) -> None:
        check_name(self.name, "zone")
        least = MIN_SYSTEM_MEMORY if self.system else MIN_APPLICATION_MEMORY
        check_memory(self.memory, least, f"zone {self.name}")
        check_percent(self.percent, f"zone {self.name}")
        check_boolean(self.follow, f"zone {self.name}: follow")
        check_pins(self.pins, self.memory, self.percent, f"zone {self.name}")

    @property
    def system(self) -> bool:
        return self.name == SYSTEM

    @property
    def pages(self) -> int:
        return self.memory // PAGE

    @classmethod
    def read(cls, item: Object, kind: DomainClass) -> Zone:
        name, memory, pins = item.string("name"), item.integer("memory"), item.integer("pins") if "pins" in item else 0
        if not kind.encrypted:
            return cls(name, memory, 0, pins=pins)
        follow = item.boolean("follow") if name == SYSTEM else False
        return cls(name, memory, item.integer("percent"), follow, pins)

    def object_of(self, kind: DomainClass) -> dict[str, Any]:
        """The JSON object in the configuration of a domain of this class."""
        found: dict[str, Any] = {"name": self.name, "memory": self.memory}
        if kind.encrypted:
            found["percent"] = self.percent
            if self.system:
                found["follow"] = self.follow
        if self.pins:
            found["pins"] = self.pins
        return found


def window_bytes(memory: int, percent: int) -> int:
    """How much of a zone may be plaintext (docs/architecture.md, section 4)."""
    return min(memory, max((100 - percent) * (memory // PAGE) // 100, MINIMUM_WINDOW) * PAGE)


def check_pins(pins: object, memory: int, percent: int, where: str) -> None:
    check_integer(pins, 0, MAX_MEMORY, f"{where}: pins", unit=" bytes")
    most = max(0, window_bytes(memory, percent) - PIN_HEADROOM * PAGE)
    if int(str(pins)) % PAGE:
        raise ConfigError(f"{where}: pins must be a multiple of {PAGE} bytes", hint='for example "16M"')
    if int(str(pins)) > most:
        raise ConfigError(
            f"{where}: {int(str(pins)) >> 10} KiB of pins are more than {percent} % leave in plaintext",
            hint=f"at most {most >> 10} KiB, or a lower percentage",
        )


def check_percent(percent: object, where: str) -> None:
    if type(percent) is not int or not 0 <= percent <= 100:
        raise ConfigError(
            f"{where}: percent is {str(percent)[:20]}",
            hint="the encrypted part of the memory, a whole number from 0 to 100",
        )


def check_memory(memory: object, least: int, where: str) -> None:
    check_size(memory, least, MAX_MEMORY, f"{where}: memory")
    if int(str(memory)) % MEMORY_STEP:
        raise ConfigError(f"{where}: memory must be a multiple of 2 MiB", hint='for example "128M"')
