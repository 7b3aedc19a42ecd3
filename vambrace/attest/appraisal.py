"""The appraisal of evidence: every check of the verifier, as one table, and what each has to say.

First comes who signed. Only if that holds, what the token says is looked at, in the order from the root outwards:
what state the platform is in, whether the token is fresh, what was booted, what the Realm is. Every check is made, also
after one has refused, so that a result tells all that is wrong; ``verify.accepted`` raises the first refusal.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from vambrace.attest.chain import PLATFORM_PURPOSE, VerifiedChain, verify_chain
from vambrace.attest.claims import CACHE_PARTITIONS, Component
from vambrace.attest.endorsement import platform_instance_id
from vambrace.attest.policy import Policy, lifecycle_name
from vambrace.attest.references import ReferenceValues
from vambrace.attest.revocation import Revocation, RevocationList
from vambrace.attest.signatures import check_realm_signature
from vambrace.attest.token import UnverifiedEvidence, decode_evidence
from vambrace.attest.trustworthiness import (
    APPROVED_AT_BOOT,
    BAD,
    CRYPTO_FAILED,
    DOUBTFUL,
    GOOD,
    PLATFORM,
    REALM,
    UNRECOGNIZED,
    UNRECOGNIZED_CODE,
    Claim,
    Finding,
    Tier,
    status,
    vector,
)
from vambrace.errors import (
    AnotherRealm,
    CacheShared,
    CertificateRevoked,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MeasurementMismatch,
    OwnerMismatch,
    PolicyRefused,
    ReplayedToken,
    SignatureInvalid,
    VerificationError,
)


@dataclass(frozen=True)
class Anchors:
    """What a verifier takes as true without evidence: vendors' roots, reference values, revocation lists."""

    roots: tuple[x509.Certificate, ...] = ()
    references: tuple[ReferenceValues, ...] = ()
    revocation_lists: tuple[RevocationList, ...] = ()


@dataclass(frozen=True)
class Appraisal:
    """What the verifier found. Nothing of ``evidence`` may be used before ``verify.accepted`` has returned."""

    token: bytes
    evidence: UnverifiedEvidence
    sha256: bytes  # of the token
    policy: Policy
    endorsement: str  # subject of the platform key's certificate; empty if that is not trusted
    findings: tuple[Finding, ...]

    @property
    def authentic(self) -> bool:
        """Both halves are signed by keys that lead to a root; nothing more."""
        return bool(self.endorsement)

    @property
    def error(self) -> VerificationError | None:
        """The first refusal."""
        return next((finding.error for finding in self.findings if finding.error), None)

    def of(self, attester: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.attester == attester)

    def vector(self, attester: str) -> dict[Claim, int]:
        return vector(self.of(attester))

    def status(self, attester: str) -> Tier:
        return status(self.of(attester))


def appraise(
    token: bytes,
    *,
    anchors: Anchors,
    policy: Policy,
    challenge: bytes,
    now: datetime | None = None,
    instance: bytes | None = None,
    seen: Container[bytes] = (),
) -> Appraisal:
    """Appraise evidence by ``policy``. ``challenge`` has 64 bytes; ``now`` has a time zone; ``seen``: SHA-256 of tokens
    of other starts; ``instance``: the one that is meant, where it is known already.

    Raises ``MalformedEvidence`` for what is no token; every other refusal is a finding.
    """
    evidence = decode_evidence(token)
    digest = hashlib.sha256(token).digest()
    case = _Case(evidence, digest, anchors, policy, now or datetime.now(UTC), challenge, instance, seen)
    chain, findings = _who_signed(case)
    if chain is not None:
        findings += [check.make(case) for check in _CHECKS]
    subject = chain.path.subject if chain else ""
    return Appraisal(token, evidence, digest, policy, subject, tuple(findings))


@dataclass(frozen=True)
class _Case:
    """All that a check may look at."""

    evidence: UnverifiedEvidence
    sha256: bytes
    anchors: Anchors
    policy: Policy
    now: datetime
    challenge: bytes
    instance: bytes | None
    seen: Container[bytes]


class Concession(str):
    """The reason of a check that passed only because the policy allows it."""


@dataclass(frozen=True)
class _Check:
    """One row of the table. ``run`` returns its reason, or raises what refuses the evidence."""

    attester: str
    claim: Claim
    good: int
    bad: int
    run: Callable[[_Case], str]

    def make(self, case: _Case) -> Finding:
        try:
            reason = self.run(case)
        except VerificationError as error:
            return Finding(self.attester, self.claim, self.bad, error.message, error)
        value = DOUBTFUL if isinstance(reason, Concession) else self.good
        return Finding(self.attester, self.claim, value, str(reason))


# --- who signed -----------------------------------------------------------------------------------------


def _who_signed(case: _Case) -> tuple[VerifiedChain | None, list[Finding]]:
    """Vendor's certificate → platform key → platform token → realm key → realm token; no chain if any of it fails."""
    revocation = Revocation(
        case.anchors.revocation_lists, case.policy.require_revocation, case.policy.revocation_age
    )
    who = Claim.INSTANCE_IDENTITY
    try:
        chain = verify_chain(
            case.evidence.x5chain, case.anchors.roots, PLATFORM_PURPOSE, case.now, revocation=revocation
        )
    except VerificationError as error:
        value = BAD if isinstance(error, CertificateRevoked) else UNRECOGNIZED
        return None, [Finding(PLATFORM, who, value, error.message, error)]
    try:
        _check_platform_signature(case.evidence, chain)
    except VerificationError as error:
        return None, [Finding(PLATFORM, who, CRYPTO_FAILED, error.message, error)]
    platform = Finding(PLATFORM, who, GOOD, f"its key is certified by the vendor, {chain.revocation}")
    try:
        check_realm_signature(case.evidence)
    except VerificationError as error:
        return None, [platform, Finding(REALM, who, CRYPTO_FAILED, error.message, error)]
    return chain, [platform, Finding(REALM, who, GOOD, "its key is vouched for by the platform")]


def _check_platform_signature(evidence: UnverifiedEvidence, chain: VerifiedChain) -> None:
    evidence.platform_message.verify(chain.key, "platform token")
    if evidence.platform.ueid != platform_instance_id(chain.path.cose_key):
        raise SignatureInvalid("the platform's instance identity is not that of its key")


def _profile(case: _Case) -> str:
    if "vambrace" not in case.policy.profiles:
        raise PolicyRefused("the token's profile is not one that the policy accepts", rule="platform.profiles")
    return "the token is of a profile that is accepted"


# --- the platform ---------------------------------------------------------------------------------------


def _security(case: _Case) -> str:
    if not case.evidence.realm.insecure:
        return "it has TrustZone and measured boot"
    if not case.policy.allow_insecure:
        raise InsecurePlatform(
            "the platform says that it is insecure",
            hint="it has no TrustZone or no measured boot; its token proves nothing",
        )
    return Concession("it says that it is insecure, and the policy allows that")


def _lifecycle(case: _Case) -> str:
    lifecycle = case.evidence.platform.lifecycle
    name = lifecycle_name(lifecycle)
    if not case.policy.accepts_lifecycle(lifecycle):
        raise InsecurePlatform(
            f"the platform's life cycle is {name}",
            hint="the vendor secures it at the factory, after certifying its key",
        )
    return f"its life cycle is {name}" if name == "secured" else Concession(f"its life cycle is {name}")


def _implementation(case: _Case) -> str:
    known = [values.implementation_id for values in case.anchors.references]
    if not known:
        raise ComponentChanged(
            "there are no reference values for the platform",
            component="implementation",
            hint="get them from its vendor",
        )
    if not _of_implementation(case):
        raise ComponentChanged(
            "the platform is another implementation than the reference values describe",
            component="implementation",
        )
    return "its implementation is one that the vendor has published reference values for"


def _machine(case: _Case) -> str:
    if case.policy.platforms is None:
        return "any machine of the vendor's is accepted"
    if case.evidence.platform.ueid not in case.policy.platforms:
        raise PolicyRefused(
            f"the platform {case.evidence.platform.ueid.hex()} is not among those that the policy names",
            rule="platform.identities",
        )
    return "it is one of those that the policy names"


def _components(case: _Case) -> str:
    differences = [_difference(case, values) for values in _of_implementation(case)]
    if not differences:
        raise ComponentChanged(
            "there are no reference values for this implementation", component="implementation"
        )
    if None not in differences:
        raise next(difference for difference in differences if difference)
    return f"all {len(case.evidence.platform.components)} components have their reference values"


def _of_implementation(case: _Case) -> list[ReferenceValues]:
    theirs = case.evidence.platform.implementation_id
    return [values for values in case.anchors.references if values.implementation_id in (None, theirs)]


def _difference(case: _Case, references: ReferenceValues) -> ComponentChanged | None:
    """What was measured and is not as in ``references``; the order counts, too."""
    measured, expected = case.evidence.platform.components, references.components
    if len(measured) == len(expected) and all(map(Component.meets, measured, expected)):
        return None
    missing = Counter(c.name for c in expected) - Counter(c.name for c in measured)
    for name in missing:
        return ComponentChanged(f"component {name} was not measured at boot", component=name)
    extra = Counter(c.name for c in measured) - Counter(c.name for c in expected)
    for name in extra:
        return ComponentChanged(f"component {name} has no reference value", component=name)
    for component in measured:
        if not any(component.meets(reference) for reference in expected):
            return ComponentChanged(
                f"component {component.name} differs from its reference value",
                component=component.name,
                hint="changed firmware or host, or reference values of another build",
            )
    for component, reference in zip(measured, expected, strict=True):
        if not component.meets(reference):
            return ComponentChanged(
                f"component {component.name} was measured out of order", component=component.name
            )
    raise AssertionError("they differ in nothing")


# --- the Realm ------------------------------------------------------------------------------------------


def _debug(case: _Case) -> str:
    if not case.evidence.realm.debug:
        return "it is not in debug mode"
    if not case.policy.allow_debug:
        raise InsecurePlatform("the Realm runs in debug mode: its console is open to the operator")
    return Concession("it is in debug mode, and the policy allows that")


def _freshness(case: _Case) -> str:
    """The challenge alone decides; the other two say more exactly what happened."""
    realm = case.evidence.realm
    if case.sha256 in case.seen:
        raise ReplayedToken("the token is an old one, of an earlier start", hint="the host replays it: do not trust it")
    if case.instance is not None and realm.instance != case.instance:
        raise AnotherRealm(
            "the token is of another instance of this image",
            instance=realm.instance,
            hint="the host relays another Realm's: do not trust it",
        )
    if not hmac.compare_digest(realm.challenge, case.challenge):
        raise ChallengeMismatch("the token answers another challenge", hint="the nonce is wrong, or it is not fresh")
    return "the token answers the challenge"


def _measurement(case: _Case) -> str:
    realm, accepted = case.evidence.realm, case.policy.measurements
    if realm.hash_algorithm != case.policy.hash_algorithm:
        raise MeasurementMismatch(f"the Realm was measured with {realm.hash_algorithm}")
    if accepted is None:
        return Concession("the policy accepts any image")
    if not accepted:
        raise MeasurementMismatch("nothing says what the Realm's measurement should be", hint="name it in the policy")
    if realm.measurement not in accepted:
        raise MeasurementMismatch(
            f"the Realm's measurement is {realm.measurement.hex()}, not {_expected(accepted)}",
            hint="the host started another image or configuration than this one",
        )
    return "its image and configuration have the measurement that is expected"


def _expected(measurements: frozenset[bytes]) -> str:
    return next(iter(measurements)).hex() if len(measurements) == 1 else "one of those that are accepted"


def _registers(case: _Case) -> str:
    demanded = 0
    for index, (value, accepted) in enumerate(zip(case.evidence.realm.rems, case.policy.registers, strict=True)):
        if accepted is None:
            continue
        demanded += 1
        if value not in accepted:
            raise PolicyRefused(
                f"the Realm's run-time measurement register {index} is {value.hex()}, which is not accepted",
                rule=f"realm.registers.{index}",
            )
    return f"{demanded} run-time measurement registers have values that are accepted" if demanded else (
        "the policy asks for no run-time measurement"
    )


def _owner(case: _Case) -> str:
    if case.policy.owners is None:
        return "any owner is accepted"
    if case.evidence.realm.personalization not in case.policy.owners:
        raise OwnerMismatch("the Realm was started for another owner")
    return "it was started for an owner that is accepted"


def _class(case: _Case) -> str:
    stated = case.evidence.realm.domain_class
    if stated not in case.policy.classes:
        raise PolicyRefused(
            f"the class of the domain is {stated!r}, which the policy does not accept", rule="realm.classes"
        )
    return f"its class is {stated!r}"


def _cache(case: _Case) -> str:
    stated, accepted = case.evidence.realm.cache_partition, case.policy.cache_partitions
    if stated not in accepted:
        demanded = " or ".join(repr(known) for known in CACHE_PARTITIONS if known in accepted)
        raise CacheShared(
            f"the Realm's cache partition is {stated!r}, and {demanded} is demanded",
            stated=stated,
            hint="use a host that divides its cache so, or demand less",
        )
    return f"its cache partition is {stated!r}"


def _key_storage(case: _Case) -> str:
    stated, accepted = case.evidence.realm.key_storage, case.policy.key_storage
    if accepted is not None and stated not in accepted:
        raise PolicyRefused(
            f"the key of the Realm's memory is in {stated!r}, which the policy does not accept",
            rule="realm.key-storage",
        )
    return f"its memory is closed to other domains; the key of its encryption is in {stated!r}"


# Isolated from every other domain, and not opaque to the measured host: AR4SI calls that a warning.
_OPACITY: Final = DOUBTFUL

_CHECKS: Final = (
    _Check(PLATFORM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, _profile),
    _Check(PLATFORM, Claim.HARDWARE, GOOD, BAD, _security),
    _Check(PLATFORM, Claim.CONFIGURATION, GOOD, BAD, _lifecycle),
    _Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _debug),
    _Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, _freshness),
    _Check(PLATFORM, Claim.HARDWARE, GOOD, UNRECOGNIZED, _implementation),
    _Check(PLATFORM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, _components),
    _Check(PLATFORM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, _machine),
    _Check(REALM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, _measurement),
    _Check(REALM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, _registers),
    _Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, _owner),
    _Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _cache),
    _Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _class),
    _Check(REALM, Claim.RUNTIME_OPAQUE, _OPACITY, BAD, _key_storage),
)
