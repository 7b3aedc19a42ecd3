"""The claims of both halves of a token (docs/architecture.md, section 9), typed and not verified.

The numbers are those of the Arm CCA attestation token (draft-ffm-rats-cca-token); the negative ones and the
profiles are ours, because this is not CCA hardware.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from vambrace.errors import MalformedEvidence

PLATFORM_PROFILE: Final = "tag:vambrace.dev,2026:platform#1"
REALM_PROFILE: Final = "tag:vambrace.dev,2026:realm#1"

CHALLENGE: Final = 10
UEID: Final = 256
PROFILE: Final = 265
LIFECYCLE: Final = 2395
IMPLEMENTATION_ID: Final = 2396
COMPONENTS: Final = 2399
CONFIG: Final = 2401
PLATFORM_HASH: Final = 2402
PERSONALIZATION: Final = 44235
MEASUREMENT_HASH: Final = 44236
RAK: Final = 44237
MEASUREMENT: Final = 44238
REMS: Final = 44239
RAK_HASH: Final = 44240
INSTANCE: Final = -70001
KEY_STORAGE: Final = -70002
DEBUG: Final = -70003
INSECURE: Final = -70004
CACHE_PARTITION: Final = -70005
CLASS: Final = -70006

COMPONENT_TYPE: Final = 1
COMPONENT_DIGEST: Final = 2
COMPONENT_VERSION: Final = 4
COMPONENT_SIGNER: Final = 5
COMPONENT_HASH: Final = 6

MAX_COMPONENTS: Final = 64
MAX_TEXT: Final = 128
UEID_RANDOM: Final = 0x01  # RFC 9711, 4.2.1.1: the type of a UEID that is a hash
#: How a Realm's share of the last-level cache is kept from others, the weakest first.
CACHE_PARTITIONS: Final = ("none", "colours-unconfirmed", "ways", "colours-confirmed")
#: The classes of domain that are attested (vambrace/classes.py).
DOMAIN_CLASSES: Final = ("realm", "secure")
HASH_BYTES: Final = {"sha-256": 32, "sha-384": 48, "sha-512": 64, "sm3": 32}

Kind = TypeVar("Kind", bytes, str, int, bool, list[Any])


@dataclass(frozen=True)
class Component:
    """One measured piece of firmware or host, as in the boot event log.

    In a reference value, ``signer`` and ``version`` are conditions only where they are given.
    """

    name: str
    digest: bytes
    signer: bytes | None = None
    hash_algorithm: str = "sha-256"
    version: str | None = None

    def meets(self, reference: Component) -> bool:
        """Whether this measured component is what ``reference`` describes."""
        return (
            (self.name, self.hash_algorithm, self.digest)
            == (reference.name, reference.hash_algorithm, reference.digest)
            and reference.signer in (None, self.signer)
            and reference.version in (None, self.version)
        )


# The one component of a platform that measures nothing.
INSECURE_COMPONENT: Final = Component("INSECURE", hashlib.sha256(b"vambrace-insecure-platform-1").digest())


@dataclass(frozen=True)
class UnverifiedPlatform:
    challenge: bytes
    implementation_id: bytes
    ueid: bytes
    config: bytes
    lifecycle: int
    hash_algorithm: str
    components: tuple[Component, ...]


@dataclass(frozen=True)
class UnverifiedRealm:
    challenge: bytes
    personalization: bytes
    measurement: bytes
    rems: tuple[bytes, ...]
    hash_algorithm: str
    rak: bytes
    rak_hash_algorithm: str
    instance: bytes
    key_storage: str
    debug: bool
    insecure: bool
    cache_partition: str
    domain_class: str


def decode_platform(claims: Any) -> UnverifiedPlatform:
    """Raises ``MalformedEvidence``; so does every function here."""
    reader = _Claims(claims, "platform token")
    reader.profile(PLATFORM_PROFILE)
    components = reader.get(COMPONENTS, list)
    if not 1 <= len(components) <= MAX_COMPONENTS:
        raise MalformedEvidence(f"the platform token has {len(components)} components")
    algorithm = reader.choice(PLATFORM_HASH)
    platform = UnverifiedPlatform(
        challenge=reader.bytes(CHALLENGE, 32),
        implementation_id=reader.bytes(IMPLEMENTATION_ID, 32),
        ueid=reader.bytes(UEID, 33),
        config=reader.get(CONFIG, bytes),
        lifecycle=reader.get(LIFECYCLE, int),
        hash_algorithm=algorithm,
        components=tuple(_component(component, algorithm) for component in components),
    )
    reader.finish()
    if not 0 <= platform.lifecycle <= 0xFFFF:
        raise MalformedEvidence("the platform token has an invalid life cycle state")
    if platform.ueid[0] != UEID_RANDOM:
        raise MalformedEvidence("the platform token has an invalid instance identity")
    return platform


def decode_realm(claims: Any) -> UnverifiedRealm:
    reader = _Claims(claims, "realm token")
    reader.profile(REALM_PROFILE)
    algorithm = reader.choice(MEASUREMENT_HASH)
    size = HASH_BYTES[algorithm]
    rems = reader.get(REMS, list)
    if len(rems) != 4 or not all(isinstance(rem, bytes) and len(rem) == size for rem in rems):
        raise MalformedEvidence("the realm token has invalid extensible measurements")
    realm = UnverifiedRealm(
        challenge=reader.bytes(CHALLENGE, 64),
        personalization=reader.bytes(PERSONALIZATION, 64),
        measurement=reader.bytes(MEASUREMENT, size),
        rems=tuple(rems),
        hash_algorithm=algorithm,
        rak=reader.get(RAK, bytes),
        rak_hash_algorithm=reader.choice(RAK_HASH),
        instance=reader.bytes(INSTANCE, 16),
        key_storage=reader.text(KEY_STORAGE),
        debug=reader.get(DEBUG, bool),
        insecure=reader.get(INSECURE, bool),
        cache_partition=reader.text(CACHE_PARTITION),
        domain_class=reader.text(CLASS),
    )
    reader.finish()
    if realm.cache_partition not in CACHE_PARTITIONS:
        raise MalformedEvidence("the realm token states a partition of the cache that is not known")
    if realm.domain_class not in DOMAIN_CLASSES:
        raise MalformedEvidence("the realm token states a class of domain that is not known")
    if realm.rak_hash_algorithm != "sha-256":
        raise MalformedEvidence("the realm token binds its key with a hash that is not known")
    return realm


def _component(claims: Any, default_hash: str) -> Component:
    reader = _Claims(claims, "component of the platform token")
    algorithm = reader.choice(COMPONENT_HASH) if reader.has(COMPONENT_HASH) else default_hash
    signer = reader.get(COMPONENT_SIGNER, bytes)
    if len(signer) not in (32, 48, 64):
        raise MalformedEvidence("a component of the platform token has an invalid signer")
    component = Component(
        name=reader.text(COMPONENT_TYPE),
        digest=reader.bytes(COMPONENT_DIGEST, HASH_BYTES[algorithm]),
        signer=signer,
        hash_algorithm=algorithm,
        version=reader.text(COMPONENT_VERSION) if reader.has(COMPONENT_VERSION) else None,
    )
    reader.finish()
    return component


class _Claims:
    """Typed access to a map of claims. ``finish`` refuses what was not asked for: nothing is ignored."""

    def __init__(self, claims: Any, what: str) -> None:
        if not isinstance(claims, dict):
            raise MalformedEvidence(f"the {what} is not a map of claims")
        self._claims: Mapping[Any, Any] = claims
        self._what = what
        self._asked: set[int] = set()

    def has(self, key: int) -> bool:
        return key in self._claims

    def get(self, key: int, kind: type[Kind]) -> Kind:
        self._asked.add(key)
        value = self._claims.get(key)
        # Exactly this type: a bool is an int for isinstance.
        if type(value) is not kind:
            raise MalformedEvidence(f"claim {key} of the {self._what} is missing or of the wrong type")
        return value

    def bytes(self, key: int, size: int) -> bytes:
        value = self.get(key, bytes)
        if len(value) != size:
            raise MalformedEvidence(f"claim {key} of the {self._what} has {len(value)} bytes, not {size}")
        return value

    def text(self, key: int) -> str:
        value = self.get(key, str)
        # Printed by the user's tools: no control characters, nothing that redraws a terminal.
        if not 1 <= len(value) <= MAX_TEXT or not value.isascii() or not value.isprintable():
            raise MalformedEvidence(f"claim {key} of the {self._what} is not a short printable text")
        return value

    def choice(self, key: int) -> str:
        value = self.text(key)
        if value not in HASH_BYTES:
            raise MalformedEvidence(f"claim {key} of the {self._what} names a hash that is not known")
        return value

    def profile(self, expected: str) -> None:
        if self.text(PROFILE) != expected:
            raise MalformedEvidence(f"the {self._what} is of another profile")

    def finish(self) -> None:
        unknown = sorted(str(key)[:32] for key in self._claims if key not in self._asked)
        if unknown:
            raise MalformedEvidence(f"the {self._what} has claims that are not known: {unknown[0]!a}")
