"""The appraisal of evidence: who signed it, and then what every check has to say (``checks``, ``ccachecks``).

Only if the signatures lead to an anchor, what the token says is looked at, in the order from the root outwards: what
state the platform is in, whether the token is fresh, what was booted, what the Realm is. Every check is made, after one
has refused too, so that a result tells all that is wrong; ``verify.accepted`` raises the first refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from datetime import UTC, datetime
from typing import NamedTuple

from vambrace.attest import ccachecks, checks, profiles
from vambrace.attest.anchors import Anchors
from vambrace.attest.chain import PLATFORM_PURPOSE, VerifiedChain, verify_chain
from vambrace.attest.checks import Case
from vambrace.attest.endorsement import platform_instance_id
from vambrace.attest.policy import Policy
from vambrace.attest.profiles import Profile
from vambrace.attest.revocation import Revocation
from vambrace.attest.signatures import check_realm_signature
from vambrace.attest.suites import suite_of
from vambrace.attest.token import UnverifiedToken, decode_token
from vambrace.attest.trustworthiness import (
    BAD,
    CRYPTO_FAILED,
    GOOD,
    PLATFORM,
    REALM,
    UNRECOGNIZED,
    Claim,
    Finding,
    Tier,
    status,
    vector,
)
from vambrace.errors import (
    CertificateRevoked,
    RevocationUnknown,
    SignatureInvalid,
    UnknownRoot,
    VerificationError,
)
from vambrace.suite import NIST


class Appraisal(NamedTuple):
    """What the verifier found. Nothing of ``evidence`` may be used before ``verify.accepted`` has returned.

    ``endorsement`` says who vouches for the platform's key; it is empty if nobody who is trusted does, or if a
    signature does not verify.
    """

    token: bytes
    evidence: UnverifiedToken
    sha256: bytes  # of the token
    policy: Policy
    endorsement: str
    findings: tuple[Finding, ...]

    @property
    def digest(self) -> bytes:
        """Of the token, by the hash of the suite that it is signed in."""
        return (self.evidence.platform_message.algorithm.suite or NIST).digest(self.token)

    @property
    def authentic(self) -> bool:
        """Both halves are signed by keys that lead to an anchor; nothing more."""
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
    expected_measurement: bytes | None = None,
    expected_owner: bytes | None = None,
    readable: tuple[Profile, ...] = profiles.ALL,
) -> Appraisal:
    """Appraise evidence by ``policy``. ``challenge`` has 64 bytes; ``now`` has a time zone; ``seen``: SHA-256 of tokens
    of other starts; ``instance``: the one that is meant, where it is known already. The expected measurement and owner
    are demanded beside what the policy demands.

    Raises ``MalformedEvidence`` for what is no token of a ``readable`` profile; every other refusal is a finding.
    """
    evidence = decode_token(token, accepted=readable)
    case = Case(
        evidence=evidence,
        sha256=hashlib.sha256(token).digest(),
        anchors=anchors,
        policy=policy,
        now=now or datetime.now(UTC),
        challenge=challenge,
        instance=instance,
        seen=seen,
        expected_measurement=expected_measurement,
        expected_owner=expected_owner,
    )
    endorsement, findings = _who_signed(case)
    if endorsement:
        table = checks.TABLE if evidence.profile is profiles.VAMBRACE else ccachecks.TABLE
        findings += [check.make(case) for check in table]
    return Appraisal(token, evidence, case.sha256, policy, endorsement, tuple(findings))


def _who_signed(case: Case) -> tuple[str, list[Finding]]:
    """Who vouches for the platform's key → platform token → realm key → realm token; nobody if any of it fails."""
    vouched = _vouched_by_vendor if case.evidence.profile is profiles.VAMBRACE else _vouched_by_endorsement
    who = Claim.INSTANCE_IDENTITY
    try:
        endorsement, reason = vouched(case)
    except VerificationError as error:
        return "", [Finding(PLATFORM, who, _doubt(error), error.message, error)]
    platform = Finding(PLATFORM, who, GOOD, reason)
    try:
        check_realm_signature(case.evidence)
    except VerificationError as error:
        return "", [platform, Finding(REALM, who, CRYPTO_FAILED, error.message, error)]
    return endorsement, [platform, Finding(REALM, who, GOOD, "its key is vouched for by the platform")]


def _doubt(error: VerificationError) -> int:
    if isinstance(error, SignatureInvalid):
        return CRYPTO_FAILED
    return BAD if isinstance(error, CertificateRevoked) else UNRECOGNIZED


def _vouched_by_vendor(case: Case) -> tuple[str, str]:
    """Our platforms: the vendor's certificate is beside the signature."""
    revocation = Revocation(
        case.anchors.revocation_lists, case.policy.require_revocation, case.policy.revocation_age
    )
    chain = verify_chain(
        case.evidence.x5chain, case.anchors.roots, PLATFORM_PURPOSE, case.now, revocation=revocation
    )
    _check_platform_signature(case.evidence, chain)
    return chain.path.subject, f"its key is certified by the vendor, {chain.revocation}"


def _check_platform_signature(evidence: UnverifiedToken, chain: VerifiedChain) -> None:
    evidence.platform_message.verify(chain.key, "platform token")
    if evidence.platform.ueid != platform_instance_id(chain.path.cose_key, suite_of(chain.key)):
        raise SignatureInvalid("the platform's instance identity is not that of its key")


def _vouched_by_endorsement(case: Case) -> tuple[str, str]:
    """Arm CCA: the verifier has the key of each machine from a signed CoRIM."""
    platform = case.evidence.platform
    identity = (platform.implementation_id, platform.ueid)
    keys = [known.key for known in case.anchors.cca_keys if (known.implementation_id, known.ueid) == identity]
    if not keys:
        raise UnknownRoot("no endorsement has the key of this platform", hint="get the CoRIM of its vendor")
    if case.policy.require_revocation:
        raise RevocationUnknown(
            "endorsements of CCA platforms cannot be revoked by a list", hint='revocation = "check" accepts that'
        )
    for key in keys[:-1]:
        try:
            case.evidence.platform_message.verify(key, "platform token")
            break
        except SignatureInvalid:
            continue
    else:
        case.evidence.platform_message.verify(keys[-1], "platform token")
    return f"attestation key of {platform.ueid.hex()}", "its key is endorsed by its vendor"
