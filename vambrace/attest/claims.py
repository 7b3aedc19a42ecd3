"""The claims of both halves of a token (docs/architecture.md, section 9), typed and not verified.

The numbers are those of the Arm CCA attestation token (draft-ffm-rats-cca-token); the negative ones and the
profiles are ours, because this is not CCA hardware. The types here hold what a token of any profile says;
``decode_platform`` and ``decode_realm`` read our profile, ``cca`` reads Arm's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from vambrace.attest.claimset import HASH_BYTES, MAX_TEXT, ClaimSet
from vambrace.suite import BY_HASH

__all__ = ["HASH_BYTES", "MAX_TEXT", "Component", "UnverifiedPlatform", "UnverifiedRealm", "UnverifiedVambraceRealm"]

PLATFORM_PROFILE: Final = "tag:vambrace.dev,2026:platform#1"
REALM_PROFILE: Final = "tag:vambrace.dev,2026:realm#1"

CHALLENGE: Final = 10
UEID: Final = 256
PROFILE: Final = 265
CLIENT_ID: Final = 2394
LIFECYCLE: Final = 2395
IMPLEMENTATION_ID: Final = 2396
COMPONENTS: Final = 2399
VERIFICATION_SERVICE: Final = 2400
CONFIG: Final = 2401
PLATFORM_HASH: Final = 2402
MANUFACTURING_CONFIG: Final = 2403
EXTENSIONS: Final = 2404
BOOT_KEYS: Final = 2405
PEER_SIGNERS: Final = 2406
PERSONALIZATION: Final = 44235
MEASUREMENT_HASH: Final = 44236
RAK: Final = 44237
MEASUREMENT: Final = 44238
REMS: Final = 44239
RAK_HASH: Final = 44240
MEC_POLICY: Final = 44243
LFA_POLICY: Final = 44244
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
COMPONENT_LIVE: Final = 7
COMPONENT_COUNTERSIGNERS: Final = 8

#: What the keys mean, for people.
PLATFORM_NAMES: Final = {
    CHALLENGE: "challenge",
    UEID: "instance id",
    PROFILE: "profile",
    CLIENT_ID: "client id",
    LIFECYCLE: "life cycle",
    IMPLEMENTATION_ID: "implementation id",
    COMPONENTS: "software components",
    VERIFICATION_SERVICE: "verification service",
    CONFIG: "config",
    PLATFORM_HASH: "hash algorithm",
    MANUFACTURING_CONFIG: "manufacturing config",
    EXTENSIONS: "extensions",
    BOOT_KEYS: "boot root-of-trust keys",
    PEER_SIGNERS: "peer signers",
}
REALM_NAMES: Final = {
    CHALLENGE: "challenge",
    UEID: "instance id",
    PROFILE: "profile",
    PERSONALIZATION: "personalization",
    MEASUREMENT_HASH: "hash algorithm",
    RAK: "realm key",
    MEASUREMENT: "initial measurement",
    REMS: "extensible measurements",
    RAK_HASH: "hash algorithm of the realm key",
    MEC_POLICY: "memory encryption contexts",
    LFA_POLICY: "live firmware activation",
    INSTANCE: "instance",
    KEY_STORAGE: "key storage",
    DEBUG: "debug",
    INSECURE: "insecure",
    CACHE_PARTITION: "cache partition",
    CLASS: "class",
}
COMPONENT_NAMES: Final = {
    COMPONENT_TYPE: "type",
    COMPONENT_DIGEST: "measurement",
    COMPONENT_VERSION: "version",
    COMPONENT_SIGNER: "signer",
    COMPONENT_HASH: "hash algorithm",
    COMPONENT_LIVE: "live activation",
    COMPONENT_COUNTERSIGNERS: "countersigners",
}

MAX_COMPONENTS: Final = 64
UEID_RANDOM: Final = 0x01  # RFC 9711, 4.2.1.1: the type of a UEID that is a hash
UEID_BYTES: Final = 33
REM_COUNT: Final = 4
DIGEST_BYTES: Final = (32, 48, 64)
#: How a Realm's share of the last-level cache is kept from others, the weakest first.
CACHE_PARTITIONS: Final = ("none", "colours-unconfirmed", "ways", "colours-confirmed")
#: The classes of domain that are attested (vambrace/classes.py).
DOMAIN_CLASSES: Final = ("realm", "secure")


@dataclass(frozen=True)
class Component:
    """One measured piece of firmware or host, as in the boot event log.

    In a reference value, ``signer`` and ``version`` are conditions only where they are given. ``name`` is empty
    where a token of Arm's names no type.
    """

    name: str
    digest: bytes
    signer: bytes | None = None
    hash_algorithm: str = "sha-256"
    version: str | None = None

    def meets(self, reference: Component) -> bool:
        """Whether this measured component is what ``reference`` describes."""
        return (
            self.digest == reference.digest
            and self.name == reference.name
            and self.hash_algorithm == reference.hash_algorithm
            and (reference.signer is None or reference.signer == self.signer)
            and (reference.version is None or reference.version == self.version)
        )


# The one component of a platform that measures nothing.
INSECURE_COMPONENT: Final = Component("INSECURE", hashlib.sha256(b"vambrace-insecure-platform-1").digest())


@dataclass(frozen=True)
class ExtensionDevice:
    """A device that became part of the platform as it ran (draft-ffm-rats-cca-token-03, platform extension)."""

    measurements_digest: bytes
    certificate_chain_digest: bytes
    uses_ide: bool
    protocol: str
    hash_algorithm: str | None = None
    vca_digest: bytes | None = None
    device_type: str | None = None
    encryption: int | None = None


@dataclass(frozen=True)
class BootKey:
    """The digest of a key by which the platform's boot is verified, and its place in the fuses (the same draft)."""

    name: str
    active_array: int
    index: int
    digest: bytes


@dataclass(frozen=True)
class UnverifiedPlatform:
    """The platform half. ``challenge`` is the hash of the realm key; what has a default is of some profiles only."""

    challenge: bytes
    implementation_id: bytes  # 32 bytes
    ueid: bytes  # 33 bytes, the first 0x01
    config: bytes
    lifecycle: int
    hash_algorithm: str
    components: tuple[Component, ...]
    profile: str = PLATFORM_PROFILE
    verification_service: str | None = None
    client_id: int | None = None
    manufacturing_config: bytes | None = None
    extensions: tuple[ExtensionDevice, ...] = ()
    boot_keys: tuple[BootKey, ...] = ()
    peer_signers: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class UnverifiedRealm:
    """The realm half, whatever its profile."""

    profile: str | None  # None: the platform's profile is that of both halves
    challenge: bytes  # 64 bytes
    personalization: bytes  # 64 bytes
    measurement: bytes
    rems: tuple[bytes, ...]
    hash_algorithm: str
    rak: bytes  # the realm attestation key, in the form of the profile
    rak_hash_algorithm: str


@dataclass(frozen=True, kw_only=True)
class UnverifiedCcaRealm(UnverifiedRealm):
    """The realm half of Arm's profiles; these claims came with 2.0."""

    ueid: bytes | None = None  # 33 bytes, the first 0x01
    private_mec: bool | None = None  # whether the Realm's memory is encrypted in a context of its own
    live_activation: bool | None = None  # whether it runs on while firmware is replaced


@dataclass(frozen=True, kw_only=True)
class UnverifiedVambraceRealm(UnverifiedRealm):
    """The realm half of our profile."""

    instance: bytes  # 16 bytes
    key_storage: str
    debug: bool
    insecure: bool
    cache_partition: str
    domain_class: str


def decode_platform(claims: Any) -> UnverifiedPlatform:
    """Of our profile. Raises ``MalformedClaim``; so does every function here."""
    reader = ClaimSet(claims, "platform token", PLATFORM_NAMES)
    algorithm = reader.hash_name(PLATFORM_HASH)
    platform = UnverifiedPlatform(
        profile=reader.text(PROFILE),
        challenge=reader.octets(CHALLENGE, 32),
        implementation_id=reader.octets(IMPLEMENTATION_ID, 32),
        ueid=read_ueid(reader),
        config=reader.get(CONFIG, bytes),
        lifecycle=read_lifecycle(reader),
        hash_algorithm=algorithm,
        components=tuple(_component(component, algorithm) for component in read_components(reader)),
    )
    reader.finish()
    return platform


def decode_realm(claims: Any) -> UnverifiedVambraceRealm:
    """Of our profile."""
    reader = ClaimSet(claims, "realm token", REALM_NAMES)
    algorithm = reader.hash_name(MEASUREMENT_HASH)
    size = HASH_BYTES[algorithm]
    realm = UnverifiedVambraceRealm(
        profile=reader.text(PROFILE),
        challenge=reader.octets(CHALLENGE, 64),
        personalization=reader.octets(PERSONALIZATION, 64),
        measurement=reader.octets(MEASUREMENT, size),
        rems=read_rems(reader, size),
        hash_algorithm=algorithm,
        rak=reader.get(RAK, bytes),
        rak_hash_algorithm=reader.hash_name(RAK_HASH),
        instance=reader.octets(INSTANCE, 16),
        key_storage=reader.text(KEY_STORAGE),
        debug=reader.get(DEBUG, bool),
        insecure=reader.get(INSECURE, bool),
        cache_partition=reader.text(CACHE_PARTITION),
        domain_class=reader.text(CLASS),
    )
    reader.finish()
    if realm.cache_partition not in CACHE_PARTITIONS:
        reader.refuse("the realm token states a partition of the cache that is not known", CACHE_PARTITION)
    if realm.domain_class not in DOMAIN_CLASSES:
        reader.refuse("the realm token states a class of domain that is not known", CLASS)
    if realm.rak_hash_algorithm not in BY_HASH:
        reader.refuse("the realm token binds its key with a hash that is not known", RAK_HASH)
    return realm


# What the profiles have in common.


def read_ueid(reader: ClaimSet) -> bytes:
    ueid = reader.octets(UEID, UEID_BYTES)
    if ueid[0] != UEID_RANDOM:
        reader.refuse(f"the {reader.half} has an instance id of another type than {UEID_RANDOM:#04x}", UEID)
    return ueid


def read_lifecycle(reader: ClaimSet) -> int:
    """Two bytes: the state (``policy.LIFECYCLES``), and what the implementation has to add."""
    lifecycle = reader.get(LIFECYCLE, int)
    if not 0 <= lifecycle <= 0xFFFF:
        reader.refuse(f"the {reader.half} has an invalid life cycle state", LIFECYCLE)
    return lifecycle


def read_rems(reader: ClaimSet, *sizes: int) -> tuple[bytes, ...]:
    rems = reader.get(REMS, list)
    if len(rems) != REM_COUNT:
        reader.refuse(f"the {reader.half} has {len(rems)} extensible measurements, not {REM_COUNT}", REMS)
    if not all(isinstance(rem, bytes) and len(rem) in sizes for rem in rems):
        reader.refuse(f"the {reader.half} has invalid extensible measurements", REMS)
    return tuple(rems)


def read_components(reader: ClaimSet) -> list[ClaimSet]:
    return reader.maps(COMPONENTS, "component of the platform token", COMPONENT_NAMES, MAX_COMPONENTS)


def _component(reader: ClaimSet, default_hash: str) -> Component:
    algorithm = reader.hash_name(COMPONENT_HASH) if reader.has(COMPONENT_HASH) else default_hash
    component = Component(
        name=reader.text(COMPONENT_TYPE),
        digest=reader.octets(COMPONENT_DIGEST, HASH_BYTES[algorithm]),
        signer=reader.octets(COMPONENT_SIGNER, *DIGEST_BYTES),
        hash_algorithm=algorithm,
        version=reader.text(COMPONENT_VERSION) if reader.has(COMPONENT_VERSION) else None,
    )
    reader.finish()
    return component
