"""What the monitor states about a Realm, and its form on the way to ``firmware/ta`` (``protocol.h`` there)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vambrace.errors import TrustZoneError
from vambrace.suite import NIST, Suite

_REQUEST: Final = struct.Struct("<II4B4x16s64s64s32s32s32s32s32s")
_VERSION: Final = 1
_DEBUG: Final = 1
_KEY_STORAGE: Final = {"dram": 1}
_CLASSES: Final = {"realm": 1, "secure": 2}
_SEALING: Final = struct.Struct("<II3B5x64s32s32sI12x")
_TO_MEASUREMENT, _TO_OWNER = 1, 2
_CACHE_PARTITION: Final = {"none": 0, "ways": 1, "colours-unconfirmed": 2, "colours-confirmed": 3}


@dataclass(frozen=True)
class RealmClaims:
    """One Realm, to be attested.

    ``instance`` 16 bytes; ``rim`` and the four ``rems`` 32 each; ``personalization`` and ``challenge`` 64 each;
    ``suite`` is what it was measured with and its evidence is signed with; ``key_storage`` "dram"; ``cache_partition``
    "none", "ways", "colours-unconfirmed" or "colours-confirmed"; ``domain_class`` "realm" or "secure".
    Raises TrustZoneError if anything is of another size or value.
    """

    instance: bytes
    rim: bytes
    rems: tuple[bytes, bytes, bytes, bytes]
    personalization: bytes
    challenge: bytes
    suite: Suite = NIST
    debug: bool = False
    key_storage: str = "dram"
    cache_partition: str = "none"
    domain_class: str = "realm"

    def __post_init__(self) -> None:
        sizes = {"instance": 16, "rim": 32, "personalization": 64, "challenge": 64}
        for name, size in sizes.items():
            if len(getattr(self, name)) != size:
                raise TrustZoneError(f"a Realm's {name} has {size} bytes, not {len(getattr(self, name))}")
        if len(self.rems) != 4 or any(len(rem) != 32 for rem in self.rems):
            raise TrustZoneError("a Realm has four extensible measurements of 32 bytes each")
        choices = {
            "key_storage": _KEY_STORAGE,
            "cache_partition": _CACHE_PARTITION,
            "domain_class": _CLASSES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise TrustZoneError(f"the trusted application does not know {name} {getattr(self, name)!r}")

    def encode(self) -> bytes:
        """``struct realm_request``, 320 bytes."""
        return _REQUEST.pack(
            _VERSION,
            _DEBUG if self.debug else 0,
            self.suite.number,
            _KEY_STORAGE[self.key_storage],
            _CACHE_PARTITION[self.cache_partition],
            _CLASSES[self.domain_class],
            self.instance,
            self.personalization,
            self.challenge,
            self.rim,
            *self.rems,
        )


@dataclass(frozen=True)
class SealingClaims:
    """For whom a sealing key is to be: the Realm with ``rim`` (32 bytes), or, where ``name`` is given, the ``version``
    of the image that ``personalization`` (64 bytes) calls so. Raises TrustZoneError for other sizes and values.
    """

    personalization: bytes
    rim: bytes = bytes(32)
    suite: Suite = NIST
    name: str = ""
    version: int = 0
    debug: bool = False
    domain_class: str = "realm"

    def __post_init__(self) -> None:
        if len(self.personalization) != 64 or len(self.rim) != 32:
            raise TrustZoneError("a Realm's personalization has 64 bytes, its rim 32")
        if not self.name.isascii() or len(self.name) > 32 or "\0" in self.name or not 0 <= self.version < 1 << 32:
            raise TrustZoneError("the trusted application does not know such names and versions of images")
        if self.domain_class not in _CLASSES:
            raise TrustZoneError("the trusted application does not know this class")

    def encode(self) -> bytes:
        """``struct sealing_request``, 160 bytes. What its policy does not look at is zero."""
        owner = bool(self.name)
        return _SEALING.pack(
            _VERSION,
            _DEBUG if self.debug else 0,
            _TO_OWNER if owner else _TO_MEASUREMENT,
            0 if owner else self.suite.number,
            _CLASSES[self.domain_class],
            self.personalization,
            bytes(32) if owner else self.rim,
            self.name.encode(),
            self.version if owner else 0,
        )
