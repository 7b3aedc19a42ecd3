"""The verifier. It needs the vendor's root, the reference values, the expected measurement and the nonce.

Every function raises a ``VerificationError`` of its own kind for each way of being wrong, or returns a
``VerifiedRealm``; nothing else makes one. The order of the checks is from the root outwards: who signed,
then what state the platform is in, then what it says.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography import x509

from vambrace.attest import profiles
from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import Appraisal, appraise
from vambrace.attest.challenge import channel_challenge, launch_challenge
from vambrace.attest.claims import Component, UnverifiedVambraceRealm
from vambrace.attest.policy import Policy, lifecycle_name
from vambrace.attest.references import ReferenceValues
from vambrace.attest.revocation import RevocationList
from vambrace.attest.show import describe_component
from vambrace.attest.token import decode_evidence
from vambrace.errors import UnknownProfile
from vambrace.suite import BY_HASH, NIST, Suite


@dataclass(frozen=True, kw_only=True)
class VerifiedToken:
    """What a verified token of any profile states. Made by this module only."""

    profile: str
    measurement: bytes
    hash_algorithm: str
    rems: tuple[bytes, ...]
    personalization: bytes
    challenge: bytes
    rak: bytes  # the realm attestation key, in the form of the profile
    platform_instance_id: bytes  # UEID, 33 bytes
    implementation_id: bytes
    lifecycle: int
    components: tuple[Component, ...]
    endorsement: str  # who vouches for the platform's key: for ours, the subject of its certificate
    token_sha256: bytes
    token_digest: bytes  # by the suite's hash: what the owner's verdict names

    def as_dict(self) -> dict[str, Any]:
        """A JSON-able rendering."""
        return {
            "verified": True,
            "profile": self.profile,
            **self._own(),
            "measurement": self.measurement.hex(),
            "hash-algorithm": self.hash_algorithm,
            "extensible-measurements": [rem.hex() for rem in self.rems],
            "personalization": self.personalization.hex(),
            "challenge": self.challenge.hex(),
            "platform-instance-id": self.platform_instance_id.hex(),
            "implementation-id": self.implementation_id.hex(),
            "lifecycle": f"{self.lifecycle:#06x} ({lifecycle_name(self.lifecycle)})",
            "components": [describe_component(component) for component in self.components],
            "endorsement": self.endorsement,
            "token-sha256": self.token_sha256.hex(),
        }

    def _own(self) -> dict[str, Any]:
        """What only this profile has."""
        return {}


@dataclass(frozen=True, kw_only=True)
class VerifiedRealm(VerifiedToken):
    """What a verified token of our profile states. Made by this module only."""

    instance: bytes  # 16 bytes, new at each start
    debug: bool
    insecure: bool
    key_storage: str  # where the page key is: "dram"
    cache_partition: str
    domain_class: str  # "realm" or "secure"

    def _own(self) -> dict[str, Any]:
        return {
            "instance": self.instance.hex(),
            "class": self.domain_class,
            "debug": self.debug,
            "insecure": self.insecure,
            "key-storage": self.key_storage,
            "cache-partition": self.cache_partition,
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
    revocation_lists: Sequence[RevocationList] = (),
) -> VerifiedRealm:
    """Verify the token issued before the first instruction, for the user's ``nonce`` (32 bytes).

    The instance is new to the user: it is the token's, and bound by its signed challenge. ``seen`` are the SHA-256
    of tokens that the user had for other starts: one of these is a ``ReplayedToken``, and not only a wrong answer.
    """
    evidence = decode_evidence(token)
    challenge = launch_challenge(nonce, evidence.realm.instance, _suite(policy))
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
        revocation_lists=revocation_lists,
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
    revocation_lists: Sequence[RevocationList] = (),
) -> VerifiedRealm:
    """Verify the token of a TLS session: ``spki`` is the DER SubjectPublicKeyInfo that the server showed.

    ``instance`` is that of the launch token: a token relayed from another Realm, the same image even, raises
    ``AnotherRealm``.
    """
    return verify_evidence(
        token,
        roots=roots,
        references=references,
        challenge=channel_challenge(nonce, spki, instance, _suite(policy)),
        measurement=measurement,
        personalization=personalization,
        policy=policy,
        now=now,
        instance=instance,
        revocation_lists=revocation_lists,
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
    revocation_lists: Sequence[RevocationList] = (),
) -> VerifiedRealm:
    """Verify ``token``. ``challenge`` has 64 bytes, ``personalization`` 64; ``now`` has a time zone.

    Raises, in the order of the checks: ``MalformedEvidence``; ``UnknownRoot``, ``CertificateExpired``;
    ``SignatureInvalid`` (either half, or halves that do not belong together); ``InsecurePlatform``;
    ``ReplayedToken``, ``AnotherRealm``, ``ChallengeMismatch``; ``ComponentChanged``; ``MeasurementMismatch``;
    ``OwnerMismatch``; ``CacheShared``.
    """
    policy = policy or Policy()
    if policy.measurements == frozenset():
        policy = replace(policy, measurements=frozenset({measurement}))
    anchors = Anchors(tuple(roots), (references,), tuple(revocation_lists))
    return accepted(
        appraise(
            token,
            anchors=anchors,
            policy=policy,
            challenge=challenge,
            expected_measurement=measurement,
            expected_owner=personalization,
            now=now,
            instance=instance,
            seen=seen,
            readable=(profiles.VAMBRACE,),
        )
    )


def accepted(appraisal: Appraisal) -> VerifiedRealm:
    """What the evidence states, if no check has refused it; else raises the first refusal.

    Raises ``UnknownProfile`` for a token that is not of our profile: ``accepted_token`` takes those, too.
    """
    token = accepted_token(appraisal)
    if not isinstance(token, VerifiedRealm):
        raise UnknownProfile("the token is not of a Realm of vambrace", profiles=(token.profile, None))
    return token


def accepted_token(appraisal: Appraisal) -> VerifiedToken:
    """As ``accepted``, for a token of any profile that the policy accepts."""
    if appraisal.error:
        raise appraisal.error
    platform, realm = appraisal.evidence.platform, appraisal.evidence.realm
    common: dict[str, Any] = {
        "profile": appraisal.evidence.profile.name,
        "measurement": realm.measurement,
        "hash_algorithm": realm.hash_algorithm,
        "rems": realm.rems,
        "personalization": realm.personalization,
        "challenge": realm.challenge,
        "rak": realm.rak,
        "platform_instance_id": platform.ueid,
        "implementation_id": platform.implementation_id,
        "lifecycle": platform.lifecycle,
        "components": platform.components,
        "endorsement": appraisal.endorsement,
        "token_sha256": appraisal.sha256,
        "token_digest": appraisal.digest,
    }
    if not isinstance(realm, UnverifiedVambraceRealm):
        return VerifiedToken(**common)
    return VerifiedRealm(
        **common,
        instance=realm.instance,
        debug=realm.debug,
        insecure=realm.insecure,
        key_storage=realm.key_storage,
        cache_partition=realm.cache_partition,
        domain_class=realm.domain_class,
    )


def _suite(policy: Policy | None) -> Suite:
    """In which suite a challenge was made: that of the measurement that is expected."""
    return BY_HASH.get((policy or Policy()).hash_algorithm, NIST)
