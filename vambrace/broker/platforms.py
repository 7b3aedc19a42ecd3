"""The platforms that a broker knows: a vendor's root for each, its reference values and revocation lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vambrace.attest.anchors import Anchors
from vambrace.attest.claims import INSECURE_COMPONENT
from vambrace.attest.references import ReferenceValues
from vambrace.errors import ConfigError

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class PlatformFiles:
    """Where it stands whom a platform is to be trusted by; ``references`` is None for one without TrustZone, which
    proves nothing and is accepted only by policies that say so."""

    root: Path
    references: Path | None = None
    revocation: tuple[Path, ...] = ()

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.root, *((self.references,) if self.references else ()), *self.revocation)


@dataclass(frozen=True)
class Platform:
    anchors: Anchors
    insecure: bool = False


class Platforms:
    """Each by its name. Files that change are read anew: what a vendor takes back counts from the next appraisal on."""

    def __init__(self, files: Mapping[str, PlatformFiles]) -> None:
        self._files = dict(files)
        self._loaded: dict[str, tuple[tuple[tuple[int, int, int], ...], Platform]] = {}

    def get(self, name: str, *, insecure: bool = False) -> Platform:
        """Raises ``ConfigError``: no such platform, its files cannot be read, or are not the vendor's; also for an
        insecure one that is not asked for as such. ``VerificationError`` where reference values are not to be
        trusted."""
        if name not in self._files:
            raise ConfigError(f"this broker knows no platform {name[:40]!a}", hint="see [platforms] in its settings")
        platform = self._load(name)
        if platform.insecure and not insecure:
            raise ConfigError(f"platform {name} is insecure", hint="a policy must say that it accepts that")
        return platform

    def __iter__(self) -> Iterator[Platform]:
        for name in self._files:
            yield self._load(name)

    def _load(self, name: str) -> Platform:
        files = self._files[name]
        try:
            stamps = tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (path.stat() for path in files.all))
            known = self._loaded.get(name)
            if known is not None and known[0] == stamps:
                return known[1]
            root = files.root.read_bytes()
            values = files.references.read_bytes() if files.references else None
            lists = [path.read_bytes() for path in files.revocation]
        except OSError as error:
            raise ConfigError(
                f"platform {name}: {error.filename}: {error.strerror}", hint="the vendor publishes it"
            ) from error
        anchors = Anchors.load(roots=[root], corims=[values] if values else [], lists=lists)
        if values is None:
            anchors = replace(anchors, references=(ReferenceValues((INSECURE_COMPONENT,)),))
        platform = Platform(anchors, insecure=values is None)
        self._loaded[name] = (stamps, platform)
        return platform
