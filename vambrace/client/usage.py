"""What a host says of its domains at this moment, checked: who they are, what they have and what they use of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vambrace.client.said import text_of
from vambrace.counts import is_count
from vambrace.errors import HostError

CPU_LIMIT = 100 * 4096


@dataclass(frozen=True)
class Usage:
    """``cpu`` in percent of one processor, None where that is not known; ``memory`` in bytes, as admitted; of the
    processors those that are the domain's alone and those that it shares."""

    uuid: str
    name: str
    kind: str  # the domain's class
    state: str
    cpu: int | None
    memory: int
    processors: tuple[int, ...]
    shared_processors: tuple[int, ...]

    @classmethod
    def decode(cls, value: Any) -> Usage:
        """Raises ``HostError`` where the answer is not one."""
        try:
            cpu = None if value["cpu"] is None else _count(value["cpu"], CPU_LIMIT)
            return cls(
                uuid=text_of(value["uuid"]),
                name=text_of(value["name"]),
                kind=text_of(value["class"]),
                state=text_of(value["state"]),
                cpu=cpu,
                memory=_count(value["memory"], 1 << 64),
                processors=tuple(_count(cpu, 1 << 16) for cpu in value["processors"]),
                shared_processors=tuple(_count(cpu, 1 << 16) for cpu in value["shared_processors"]),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise HostError("the host does not say what its domains use", hint="is it older than you?") from error


def _count(value: Any, limit: int) -> int:
    if not is_count(value, limit - 1):
        raise ValueError
    return value
