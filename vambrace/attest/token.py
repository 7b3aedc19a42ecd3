"""The token as a whole: a CMW collection of a platform and a realm token. Nothing here is verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from vambrace.attest import claims
from vambrace.attest.cbor import Tag, decode
from vambrace.attest.chain import MAX_CHAIN, UNREADABLE
from vambrace.attest.cose import X5CHAIN, Sign1, decode_sign1
from vambrace.attest.policy import lifecycle_name
from vambrace.errors import MalformedEvidence

COLLECTION_TAG: Final = 907
LEGACY_COLLECTION_TAG: Final = 399  # drafts of the CCA token before CMW
PLATFORM: Final = 44234
REALM: Final = 44241

MAX_TOKEN: Final = 64 << 10
MAX_CLAIMS: Final = 32 << 10


@dataclass(frozen=True)
class UnverifiedEvidence:
    """Both halves, decoded. ``x5chain`` has DER certificates, leaf first; empty where there is none."""

    platform_message: Sign1
    realm_message: Sign1
    platform: claims.UnverifiedPlatform
    realm: claims.UnverifiedRealm
    x5chain: tuple[bytes, ...]


def decode_evidence(token: bytes) -> UnverifiedEvidence:
    """Read a token, whoever wrote it. Raises ``MalformedEvidence``."""
    collection = decode(token, limit=MAX_TOKEN)
    if not isinstance(collection, Tag) or collection.number not in (COLLECTION_TAG, LEGACY_COLLECTION_TAG):
        raise MalformedEvidence("the token is not a CMW collection")
    halves = collection.value
    if not isinstance(halves, dict) or set(halves) != {PLATFORM, REALM}:
        raise MalformedEvidence("the token is not a platform and a realm token")
    if not all(isinstance(half, bytes) for half in halves.values()):
        raise MalformedEvidence("a half of the token is not a byte string")
    platform = decode_sign1(halves[PLATFORM], "platform token", unprotected=frozenset({X5CHAIN}))
    realm = decode_sign1(halves[REALM], "realm token")
    return UnverifiedEvidence(
        platform_message=platform,
        realm_message=realm,
        platform=claims.decode_platform(decode(platform.payload, limit=MAX_CLAIMS)),
        realm=claims.decode_realm(decode(realm.payload, limit=MAX_CLAIMS)),
        x5chain=read_x5chain(platform.unprotected),
    )


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
            raise MalformedEvidence(f"x5chain is not a chain of at most {MAX_CHAIN} certificates")


def describe(token: bytes) -> dict[str, Any]:
    """A JSON-able, readable rendering of ``token``; says itself that nothing was verified.

    Raises ``MalformedEvidence``.
    """
    evidence = decode_evidence(token)
    platform, realm = evidence.platform, evidence.realm
    return {
        "verified": False,
        "size": len(token),
        "platform": {
            "profile": claims.PLATFORM_PROFILE,
            "instance-id": platform.ueid.hex(),
            "implementation-id": platform.implementation_id.hex(),
            "lifecycle": f"{platform.lifecycle:#06x} ({lifecycle_name(platform.lifecycle)})",
            "config": platform.config.hex(),
            "hash-algorithm": platform.hash_algorithm,
            "components": [describe_component(component) for component in platform.components],
            "binds-key": platform.challenge.hex(),
            "endorsement": [_subject(certificate) for certificate in evidence.x5chain],
        },
        "realm": {
            "profile": claims.REALM_PROFILE,
            "instance": realm.instance.hex(),
            "measurement": realm.measurement.hex(),
            "hash-algorithm": realm.hash_algorithm,
            "extensible-measurements": [rem.hex() for rem in realm.rems],
            "personalization": realm.personalization.hex(),
            "challenge": realm.challenge.hex(),
            "key": realm.rak.hex(),
            "key-storage": realm.key_storage,
            "cache-partition": realm.cache_partition,
            "class": realm.domain_class,
            "debug": realm.debug,
            "insecure": realm.insecure,
        },
    }


def describe_component(component: claims.Component) -> dict[str, Any]:
    """A JSON-able rendering of one component."""
    described = {"name": component.name, "digest": component.digest.hex()}
    if component.signer is not None:
        described["signer"] = component.signer.hex()
    if component.version is not None:
        described["version"] = component.version
    return described


def _subject(certificate: bytes) -> str:
    try:
        name = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except UNREADABLE:
        raise MalformedEvidence("x5chain has something that is not a certificate") from None
    return name.encode("ascii", "backslashreplace").decode()
