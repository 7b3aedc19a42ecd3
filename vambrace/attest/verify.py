"""The verifier. It needs the vendor's root, the reference values, the expected measurement and the nonce.

Every function raises a ``VerificationError`` of its own kind for each way of being wrong, or returns a
``VerifiedRealm``; nothing else makes one. The order of the checks is from the root outwards: who signed,
then what state the platform is in, then what it says.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from vambrace.attest.chain import PLATFORM_PURPOSE, verify_chain
from vambrace.attest.challenge import channel_challenge, launch_challenge
from vambrace.attest.claims import CACHE_PARTITIONS, Component, UnverifiedPlatform, UnverifiedRealm
from vambrace.attest.cose import decode_key, encode_key
from vambrace.attest.endorsement import platform_instance_id
from vambrace.attest.policy import Policy, lifecycle_name
from vambrace.attest.references import ReferenceValues
from vambrace.attest.token import UnverifiedEvidence, decode_evidence, describe_component
from vambrace.errors import (
    AnotherRealm,
    CacheShared,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MeasurementMismatch,
    OwnerMismatch,
    ReplayedToken,
    SignatureInvalid,
)


@dataclass(frozen=True)
class VerifiedRealm:
    """What a verified token states. Made by this module only."""

    instance: bytes  # 16 bytes, new at each start
    measurement: bytes
    hash_algorithm: str
    rems: tuple[bytes, ...]
    personalization: bytes
    challenge: bytes
    debug: bool
    insecure: bool
    key_storage: str  # where the page key is: "dram"
    cache_partition: str
    domain_class: str  # "realm" or "secure"
    rak: bytes  # COSE_Key of the realm attestation key
    platform_instance_id: bytes  # UEID, 33 bytes
    implementation_id: bytes
    lifecycle: int
    components: tuple[Component, ...]
    endorsement: str  # subject of the platform key's certificate
    token_sha256: bytes  # what the owner's verdict names

    def as_dict(self) -> dict[str, Any]:
        """A JSON-able rendering."""
        return {
            "verified": True,
            "instance": self.instance.hex(),
            "measurement": self.measurement.hex(),
            "hash-algorithm": self.hash_algorithm,
            "extensible-measurements": [rem.hex() for rem in self.rems],
            "personalization": self.personalization.hex(),
            "challenge": self.challenge.hex(),
            "debug": self.debug,
            "insecure": self.insecure,
            "key-storage": self.key_storage,
            "cache-partition": self.cache_partition,
            "class": self.domain_class,
            "platform-instance-id": self.platform_instance_id.hex(),
            "implementation-id": self.implementation_id.hex(),
            "lifecycle": f"{self.lifecycle:#06x} ({lifecycle_name(self.lifecycle)})",
            "components": [describe_component(component) for component in self.components],
            "endorsement": self.endorsement,
            "token-sha256": self.token_sha256.hex(),
        }


def verify_launch(
    token: bytes,
    *,
    nonce: bytes,
    roots: Sequence[x509.Certificate],
    references: ReferenceValues,
    measurement: bytes,
    personalization: bytes,
    policy: Policy | None = None,
    now: datetime | None = None,
    seen: Container[bytes] = (),
) -> VerifiedRealm:
    """Verify the token issued before the first instruction, for the user's ``nonce`` (32 bytes).

    The instance is new to the user: it is the token's, and bound by its signed challenge. ``seen`` are the SHA-256
    of tokens that the user had for other starts: one of these is a ``ReplayedToken``, and not only a wrong answer.
    """
    evidence = decode_evidence(token)
    challenge = launch_challenge(nonce, evidence.realm.instance)
    return verify_evidence(
        token,
        roots=roots,
        references=references,
        challenge=challenge,
        measurement=measurement,
        personalization=personalization,
        policy=policy,
        now=now,
        seen=seen,
    )


def verify_channel(
    token: bytes,
    *,
    nonce: bytes,
    spki: bytes,
    instance: bytes,
    roots: Sequence[x509.Certificate],
    references: ReferenceValues,
    measurement: bytes,
    personalization: bytes,
    policy: Policy | None = None,
    now: datetime | None = None,
) -> VerifiedRealm:
    """Verify the token of a TLS session: ``spki`` is the DER SubjectPublicKeyInfo that the server showed.

    ``instance`` is that of the launch token: a token relayed from another Realm, the same image even, raises
    ``AnotherRealm``.
    """
    return verify_evidence(
        token,
        roots=roots,
        references=references,
        challenge=channel_challenge(nonce, spki, instance),
        measurement=measurement,
        personalization=personalization,
        policy=policy,
        now=now,
        instance=instance,
    )


def verify_evidence(
    token: bytes,
    *,
    roots: Sequence[x509.Certificate],
    references: ReferenceValues,
    challenge: bytes,
    measurement: bytes,
    personalization: bytes,
    policy: Policy | None = None,
    now: datetime | None = None,
    instance: bytes | None = None,
    seen: Container[bytes] = (),
) -> VerifiedRealm:
    """Verify ``token``. ``challenge`` has 64 bytes, ``personalization`` 64; ``now`` has a time zone.

    Raises, in the order of the checks: ``MalformedEvidence``; ``UnknownRoot``, ``CertificateExpired``;
    ``SignatureInvalid`` (either half, or halves that do not belong together); ``InsecurePlatform``;
    ``ReplayedToken``, ``AnotherRealm``, ``ChallengeMismatch``; ``ComponentChanged``; ``MeasurementMismatch``;
    ``OwnerMismatch``; ``CacheShared``.
    """
    policy = policy or Policy()
    evidence = decode_evidence(token)
    platform, realm = evidence.platform, evidence.realm
    certificate, key = verify_chain(evidence.x5chain, roots, PLATFORM_PURPOSE, now or datetime.now(UTC))
    _check_signatures(evidence, key)
    _check_state(platform, realm, policy)
    _check_freshness(hashlib.sha256(token).digest(), realm, challenge, instance, seen)
    _check_components(platform, references)
    if realm.hash_algorithm != policy.hash_algorithm:
        raise MeasurementMismatch(f"the Realm was measured with {realm.hash_algorithm}")
    if realm.measurement != measurement:
        raise MeasurementMismatch(
            f"the Realm's measurement is {realm.measurement.hex()}, not {measurement.hex()}",
            hint="the host started another image or configuration than this one",
        )
    if realm.personalization != personalization:
        raise OwnerMismatch("the Realm was started for another owner")
    if realm.cache_partition not in policy.cache_partitions:
        demanded = _either(policy.cache_partitions)
        raise CacheShared(
            f"the Realm's cache partition is {realm.cache_partition!r}, and {demanded} is demanded",
            stated=realm.cache_partition,
            hint="use a host that divides its cache so, or demand less",
        )
    return VerifiedRealm(
        instance=realm.instance,
        measurement=realm.measurement,
        hash_algorithm=realm.hash_algorithm,
        rems=realm.rems,
        personalization=realm.personalization,
        challenge=realm.challenge,
        debug=realm.debug,
        insecure=realm.insecure,
        key_storage=realm.key_storage,
        cache_partition=realm.cache_partition,
        domain_class=realm.domain_class,
        rak=realm.rak,
        platform_instance_id=platform.ueid,
        implementation_id=platform.implementation_id,
        lifecycle=platform.lifecycle,
        components=platform.components,
        endorsement=certificate.subject.rfc4514_string(),
        token_sha256=hashlib.sha256(token).digest(),
    )


def _either(partitions: Container[str]) -> str:
    return " or ".join(repr(known) for known in CACHE_PARTITIONS if known in partitions)


def _check_signatures(evidence: UnverifiedEvidence, key: EllipticCurvePublicKey) -> None:
    """Vendor's certificate → platform key → platform token → realm key → realm token."""
    evidence.platform_message.verify(key, "platform token")
    if evidence.platform.ueid != platform_instance_id(encode_key(key)):
        raise SignatureInvalid("the platform's instance identity is not that of its key")
    rak = decode_key(evidence.realm.rak)
    if evidence.platform.challenge != hashlib.sha256(evidence.realm.rak).digest():
        raise SignatureInvalid(
            "the halves of the token do not belong together",
            hint="the platform vouches for another Realm key",
        )
    evidence.realm_message.verify(rak, "realm token")


def _check_state(platform: UnverifiedPlatform, realm: UnverifiedRealm, policy: Policy) -> None:
    if realm.insecure and not policy.allow_insecure:
        raise InsecurePlatform(
            "the platform says that it is insecure",
            hint="it has no TrustZone or no measured boot; its token proves nothing",
        )
    if not policy.accepts_lifecycle(platform.lifecycle):
        raise InsecurePlatform(
            f"the platform's life cycle is {lifecycle_name(platform.lifecycle)}",
            hint="the vendor secures it at the factory, after certifying its key",
        )
    if realm.debug and not policy.allow_debug:
        raise InsecurePlatform("the Realm runs in debug mode: its console is open to the operator")


def _check_freshness(
    digest: bytes, realm: UnverifiedRealm, challenge: bytes, instance: bytes | None, seen: Container[bytes]
) -> None:
    """The challenge alone decides; the other two say more exactly what happened."""
    if digest in seen:
        raise ReplayedToken("the token is an old one, of an earlier start", hint="the host replays it: do not trust it")
    if instance is not None and realm.instance != instance:
        raise AnotherRealm(
            "the token is of another instance of this image",
            instance=realm.instance,
            hint="the host relays another Realm's: do not trust it",
        )
    if not hmac.compare_digest(realm.challenge, challenge):
        raise ChallengeMismatch("the token answers another challenge", hint="the nonce is wrong, or it is not fresh")


def _check_components(platform: UnverifiedPlatform, references: ReferenceValues) -> None:
    expected_id = references.implementation_id
    if expected_id is not None and platform.implementation_id != expected_id:
        raise ComponentChanged(
            "the platform is another implementation than the reference values describe",
            component="implementation",
        )
    measured, expected = platform.components, references.components
    missing = Counter(c.name for c in expected) - Counter(c.name for c in measured)
    for name in missing:
        raise ComponentChanged(f"component {name} was not measured at boot", component=name)
    extra = Counter(c.name for c in measured) - Counter(c.name for c in expected)
    for name in extra:
        raise ComponentChanged(f"component {name} has no reference value", component=name)
    for component in measured:
        if not any(component.meets(reference) for reference in expected):
            raise ComponentChanged(
                f"component {component.name} differs from its reference value",
                component=component.name,
                hint="changed firmware or host, or reference values of another build",
            )
    for component, reference in zip(measured, expected, strict=True):
        if not component.meets(reference):
            raise ComponentChanged(
                f"component {component.name} was measured out of order", component=component.name
            )
