"""Names of resources, as the KBS protocol has them: ``repository/type/tag``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vambrace.errors import UsageError
from vambrace.release import PART

#: The type of resources that are keys of persistent volumes: they have a generation that their Realm commits.
VOLUME: Final = "volume"

_PART = re.compile(PART)


@dataclass(frozen=True)
class ResourceName:
    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        """Raises ``UsageError``."""
        for part in (self.repository, self.type, self.tag):
            if not _PART.fullmatch(part):
                raise UsageError(
                    f"{part[:40]!a} is no part of a resource's name",
                    hint="repository/type/name, each 1 to 64 of A-Z, a-z, 0-9, _, . and -",
                )

    @classmethod
    def parse(cls, text: str) -> ResourceName:
        """Read ``repository/type/tag``. Raises ``UsageError``."""
        parts = text.split("/")
        if len(parts) != 3:
            raise UsageError(f"{text[:80]!a} is no resource", hint="repository/type/name, as patients/secret/password")
        return cls(*parts)

    @property
    def is_volume(self) -> bool:
        return self.type == VOLUME

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"
