"""Volumes of a host, as it describes them. The host's word only: what is in one proves itself to its Realm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vambrace.client.said import plain
from vambrace.errors import HostError


@dataclass(frozen=True)
class VolumeInfo:
    """``size`` and ``taken`` in bytes: what it may take of the host's disk, and what it takes. ``domain`` is the UUID
    of the domain that has it, or empty."""

    owner: str
    name: str
    size: int
    taken: int
    changed: float
    domain: str
    raw: dict[str, Any]

    @classmethod
    def decode(cls, value: Any) -> VolumeInfo:
        """Raises ``HostError`` where the answer is not one about a volume."""
        if isinstance(value, dict):
            owner, name, size, taken = (value.get(key) for key in ("owner", "name", "size", "taken"))
            changed = value.get("changed")
            if (
                isinstance(owner, str)
                and isinstance(name, str)
                and type(size) is int
                and type(taken) is int
                and isinstance(changed, int | float)
            ):
                domain = plain(value.get("domain") or "")
                return cls(plain(owner), plain(name), size, taken, float(changed), domain, value)
        raise HostError("the host's answer is not one about a volume", hint="is this a vambrace host?")
