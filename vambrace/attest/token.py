"""The token as a whole: a collection of a platform and a realm token. Nothing here is verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from vambrace.attest import claims, profiles
from vambrace.attest.cbor import Tag, decode_tolerant, encode
from vambrace.attest.chain import MAX_CHAIN
from vambrace.attest.cose import X5CHAIN, X5T, Sign1, check_headers, decode_sign1_tolerant, unknown_header
from vambrace.attest.profiles import Collection, Profile
from vambrace.errors import MalformedCbor, MalformedEnvelope
from vambrace.suite import BY_HASH, NIST, Suite

COLLECTION_TAG: Final = 907
LEGACY_COLLECTION_TAG: Final = 399  # drafts of the CCA token before CMW
PLATFORM: Final = 44234
REALM: Final = 44241
#: How a record of a collection says that it holds an EAT in CBOR: content format of CoAP, or media type.
EAT_TYPES: Final = (263, "application/eat+cwt")

_THUMBPRINTS: Final = {-16: "sha256", -43: "sha384", -44: "sha512"}  # RFC 9054
MAX_TOKEN: Final = 64 << 10
MAX_CLAIMS: Final = 32 << 10


@dataclass(frozen=True)
class UnverifiedToken:
    """Both halves of a token of any profile, decoded. ``x5chain`` has DER certificates, leaf first, or none."""

    profile: Profile
    collection: Collection
    platform_message: Sign1
    realm_message: Sign1
    platform: claims.UnverifiedPlatform
    realm: claims.UnverifiedRealm
    x5chain: tuple[bytes, ...]

    @property
    def suite(self) -> Suite:
        """In which the Realm was measured, and challenges are made."""
        return BY_HASH.get(self.realm.hash_algorithm, NIST)


@dataclass(frozen=True)
class UnverifiedEvidence(UnverifiedToken):
    """A token of our profile."""

    realm: claims.UnverifiedVambraceRealm


_OURS: Final = (profiles.VAMBRACE,)


def decode_evidence(token: bytes) -> UnverifiedEvidence:
    """Read a token of our profile, whoever wrote it. Raises ``MalformedEvidence``."""
    evidence = decode_token(token, accepted=_OURS)
    assert isinstance(evidence, UnverifiedEvidence)  # for the type: no other profile is accepted
    return evidence


def decode_token(token: bytes, *, accepted: tuple[Profile, ...] = profiles.ALL) -> UnverifiedToken:
    """Read a token of one of the ``accepted`` profiles, whoever wrote it.

    Raises ``MalformedCbor``, ``MalformedEnvelope``, ``UnknownProfile``, ``MalformedClaim``: all of them
    ``MalformedEvidence``.
    """
    collection, halves, variation = _collection(token)
    platform = _platform_half(halves[PLATFORM], accepted)
    realm = decode_sign1_tolerant(halves[REALM], "realm token")
    realm_claims, realm_variation = decode_tolerant(realm.payload, limit=MAX_CLAIMS)
    profile = profiles.profile_of(platform.profile, _profile(realm_claims), accepted)
    if collection not in profile.collections:
        raise MalformedEnvelope(f"a token of profile {profile.name} does not come as {collection.value}")
    variation = variation or platform.variation or realm.variation or realm_variation
    if profile.deterministic and variation:
        raise MalformedCbor(variation)
    check_headers(platform.message, "platform token", profile.algorithms, profile.protected, profile.platform_loose)
    check_headers(realm, "realm token", profile.algorithms, profile.protected, profile.realm_loose)
    kind: type[UnverifiedToken] = UnverifiedEvidence if profile is profiles.VAMBRACE else UnverifiedToken
    return kind(
        profile=profile,
        collection=collection,
        platform_message=platform.message,
        realm_message=realm,
        platform=platform.of(profile),
        realm=profile.decode_realm(realm_claims),
        x5chain=platform.x5chain,
    )


def collect(platform: bytes, realm: bytes) -> bytes:
    """Both halves, each a COSE_Sign1, as a token of our profile."""
    return encode(Tag(COLLECTION_TAG, {PLATFORM: [EAT_TYPES[0], platform], REALM: [EAT_TYPES[0], realm]}))


class _PlatformHalf(NamedTuple):
    """A platform half; it is ``decoded`` if its profile is accepted."""

    message: Sign1
    profile: object
    variation: str | None
    decoded: claims.UnverifiedPlatform | None
    x5chain: tuple[bytes, ...]

    def of(self, profile: Profile) -> claims.UnverifiedPlatform:
        assert self.decoded is not None and self.profile == profile.platform
        return self.decoded


class _NotKept(Exception):
    def __init__(self, half: _PlatformHalf) -> None:
        self.half = half


def _platform_half(data: bytes, accepted: tuple[Profile, ...]) -> _PlatformHalf:
    try:
        return _kept_half(data, accepted)
    except _NotKept as other:
        return other.half


# A monitor has its platform half signed once at each boot, and puts it into all tokens: reading it once is enough, and
# so is checking its signature (``Sign1.verify``). What was malformed is not kept, nor are headers that will be refused:
# a stranger could fill memory with them.
@lru_cache(maxsize=128)
def _kept_half(data: bytes, accepted: tuple[Profile, ...]) -> _PlatformHalf:
    message = decode_sign1_tolerant(data, "platform token")
    value, variation = decode_tolerant(message.payload, limit=MAX_CLAIMS)
    name = _profile(value)
    profile = next((profile for profile in accepted if profile.platform == name), None)
    x5chain = read_x5chain(message.unprotected)
    _check_thumbprint(message.protected, x5chain)
    decoded = profile.decode_platform(value) if profile else None
    half = _PlatformHalf(message, name, message.variation or variation, decoded, x5chain)
    if profile is None or unknown_header(message, profile.protected, profile.platform_loose) is not None:
        raise _NotKept(half)
    return half


def _collection(token: bytes) -> tuple[Collection, dict[int, bytes], str | None]:
    tagged, variation = decode_tolerant(token, limit=MAX_TOKEN)
    if not isinstance(tagged, Tag) or tagged.number not in (COLLECTION_TAG, LEGACY_COLLECTION_TAG):
        raise MalformedEnvelope("the token is not a CMW collection")
    entries = tagged.value
    if not isinstance(entries, dict):
        raise MalformedEnvelope("the token is not a collection of a platform and a realm token")
    for key, half in ((PLATFORM, "platform"), (REALM, "realm")):
        if key not in entries:
            raise MalformedEnvelope(f"the token has no {half} token")
    if len(entries) != 2:
        raise MalformedEnvelope("the token has entries that are not known")
    if tagged.number == COLLECTION_TAG:
        return Collection.RECORDS, {key: _record(entry) for key, entry in entries.items()}, variation
    if not all(isinstance(entry, bytes) for entry in entries.values()):
        raise MalformedEnvelope("a half of the token is not a byte string")
    return Collection.LEGACY, entries, variation


def _record(record: Any) -> bytes:
    """The EAT in a record of a CMW (draft-ietf-rats-msg-wrap, 3.1): its type and bytes; no third, of indicators."""
    match record:
        case [kind, bytes(eat)] if type(kind) in (int, str) and kind in EAT_TYPES:
            return eat
        case [_, bytes()]:
            raise MalformedEnvelope("a record of the token is of another type than an EAT in CBOR")
        case [_, bytes(), _]:
            raise MalformedEnvelope("a record of the token has an indicator, and none is known here")
        case bytes():
            raise MalformedEnvelope("a half of the token is not in a record")
        case _:
            raise MalformedEnvelope("a half of the token is not a record of a type and a byte string")


def _profile(half: Any) -> object:
    return half.get(claims.PROFILE) if isinstance(half, dict) else None


def read_x5chain(header: Any) -> tuple[bytes, ...]:
    """The certificates of a COSE header (RFC 9360): one alone, or an array of two or more."""
    match header.get(X5CHAIN):
        case None if X5CHAIN not in header:
            return ()
        case bytes(single):
            return (single,)
        case list(several) if 2 <= len(several) <= MAX_CHAIN and all(isinstance(c, bytes) for c in several):
            return tuple(several)
        case _:
            raise MalformedEnvelope(f"x5chain is not a chain of at most {MAX_CHAIN} certificates")


def _check_thumbprint(protected: Mapping[int | str, Any], chain: tuple[bytes, ...]) -> None:
    """x5t (RFC 9360) under the signature names the leaf that comes beside it."""
    if X5T not in protected:
        return
    match protected[X5T]:
        case [int(algorithm), bytes(thumbprint)] if algorithm in _THUMBPRINTS:
            pass
        case _:
            raise MalformedEnvelope("x5t is not a hash of a certificate")
    if chain and hashlib.new(_THUMBPRINTS[algorithm], chain[0]).digest() != thumbprint:
        raise MalformedEnvelope("x5t is the hash of another certificate than x5chain begins with")
