"""The profiles whose tokens are understood: ours, and those of genuine Arm CCA platforms.

A profile is named by claim 265 of both halves. It says in which encoding, collection and algorithms a token may
come, which claims it has, and in which form it carries the realm attestation key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from vambrace.attest import cca, claims, keys
from vambrace.attest.claims import UnverifiedPlatform, UnverifiedRealm
from vambrace.attest.cose import OF_SUITES, REGISTERED, X5CHAIN, X5T
from vambrace.attest.suites import PublicKey
from vambrace.errors import UnknownProfile

_CONTENT_TYPE, _KID, _TYPE = 3, 4, 16


class Collection(Enum):
    """How the halves are wrapped: each as a byte string, or as a record of the conceptual message wrapper."""

    RECORDS = "records in a collection (907)"
    LEGACY = "byte strings in a legacy collection (399)"


@dataclass(frozen=True, eq=False)
class Profile:
    """``name`` is for people; ``platform`` and ``realm`` are what claim 265 of each half says (None: it has none)."""

    name: str
    platform: str
    realm: str | None
    decode_platform: Callable[[Any], UnverifiedPlatform]
    decode_realm: Callable[[Any], UnverifiedRealm]
    decode_rak: Callable[[bytes], PublicKey]
    collections: frozenset[Collection] = frozenset({Collection.RECORDS, Collection.LEGACY})
    algorithms: frozenset[int] = frozenset(REGISTERED)
    #: Header parameters beside the algorithm: protected, and unprotected ones of the platform and the realm token.
    protected: frozenset[int] = frozenset({_CONTENT_TYPE, _KID, _TYPE, X5T})
    platform_loose: frozenset[int] = frozenset({_KID, X5CHAIN})
    realm_loose: frozenset[int] = frozenset({_KID})
    deterministic: bool = False
    #: Whether all that is signed and hashed for a token is of one suite.
    one_suite: bool = False


VAMBRACE: Final = Profile(
    name="vambrace",
    platform=claims.PLATFORM_PROFILE,
    realm=claims.REALM_PROFILE,
    decode_platform=claims.decode_platform,
    decode_realm=claims.decode_realm,
    decode_rak=keys.decode_key,
    algorithms=OF_SUITES,
    protected=frozenset(),
    platform_loose=frozenset({X5CHAIN}),
    realm_loose=frozenset(),
    deterministic=True,
    one_suite=True,
)

_CCA_LEGACY_PLATFORM: Final = "http://arm.com/CCA-SSD/1.0.0"
_CCA_1_REALM: Final = "tag:arm.com,2023:realm#1.0.0"

CCA_LEGACY: Final = Profile(
    name="Arm CCA 1.0.0, legacy",
    platform=_CCA_LEGACY_PLATFORM,
    realm=None,
    decode_platform=cca.decode_platform,
    decode_realm=cca.decode_realm,
    decode_rak=keys.decode_point,
)
# Firmware of the one and a monitor of the other time.
CCA_LEGACY_PLATFORM: Final = Profile(
    name="Arm CCA 1.0.0, legacy platform",
    platform=_CCA_LEGACY_PLATFORM,
    realm=_CCA_1_REALM,
    decode_platform=cca.decode_platform,
    decode_realm=cca.decode_realm,
    decode_rak=keys.decode_cca_key,
)
CCA_1: Final = Profile(
    name="Arm CCA 1.0.0",
    platform="tag:arm.com,2023:cca_platform#1.0.0",
    realm=_CCA_1_REALM,
    decode_platform=cca.decode_platform,
    decode_realm=cca.decode_realm,
    decode_rak=keys.decode_cca_key,
)
CCA_2: Final = Profile(
    name="Arm CCA 2.0.0",
    platform="tag:arm.com,2024:cca_platform#2.0.0",
    realm="tag:arm.com,2024:realm#2.0.0",
    decode_platform=cca.decode_platform_2,
    decode_realm=cca.decode_realm_2,
    decode_rak=keys.decode_cca_key,
)

CCA: Final = (CCA_LEGACY, CCA_LEGACY_PLATFORM, CCA_1, CCA_2)
ALL: Final = (VAMBRACE, *CCA)


def profile_of(platform: object, realm: object, accepted: tuple[Profile, ...]) -> Profile:
    """The profile with these values of claim 265 (None where a half has none), if it is accepted.

    Raises ``UnknownProfile``.
    """
    for profile in accepted:
        if (platform, realm) == (profile.platform, profile.realm):
            return profile
    named = (_shown(platform), _shown(realm))
    if any(platform == profile.platform for profile in accepted):
        if realm is None:
            raise UnknownProfile("the realm token names no profile", profiles=named)
        raise UnknownProfile(f"the realm token is of another profile than its platform's: {named[1]!a}", profiles=named)
    if platform is None:
        raise UnknownProfile("the platform token names no profile", profiles=named)
    if any(platform == profile.platform for profile in ALL):
        raise UnknownProfile(f"the token is of another profile than is accepted here: {named[0]!a}", profiles=named)
    raise UnknownProfile(f"the platform token is of a profile that is not known: {named[0]!a}", profiles=named)


def _shown(profile: object) -> str | None:
    return None if profile is None else str(profile)[:64]
