"""The appraisal: one finding for each check, also after one has refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from attest_factory import INSTANCE, MEASUREMENT, NONCE, NOW, PERSONALIZATION, Platform, claim, collection, new_key
from cryptography.x509 import ReasonFlags, load_der_x509_certificate

from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import Appraisal, appraise
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.policy import Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.revocation import load_list
from vambrace.attest.trustworthiness import PLATFORM, REALM, Claim, Finding, Tier, status, tier, vector
from vambrace.attest.verify import accepted
from vambrace.errors import (
    CertificateRevoked,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MalformedEvidence,
    SignatureInvalid,
    UnknownRoot,
)

POLICY = Policy(measurements=frozenset({MEASUREMENT}), owners=frozenset({PERSONALIZATION}))


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


def judge(platform: Platform, token: bytes | None = None, **changes: Any) -> Appraisal:
    known = {"anchors": Anchors(tuple(platform.roots), (platform.references,)), "policy": POLICY, "now": NOW}
    known["challenge"] = launch_challenge(NONCE, INSTANCE)
    return appraise(platform.token() if token is None else token, **{**known, **changes})


def test_a_good_token(platform: Platform) -> None:
    appraisal = judge(platform)
    assert appraisal.error is None and accepted(appraisal).instance == INSTANCE
    assert appraisal.status(PLATFORM) is Tier.AFFIRMING
    assert appraisal.vector(PLATFORM) == {
        Claim.INSTANCE_IDENTITY: 2,
        Claim.CONFIGURATION: 2,
        Claim.EXECUTABLES: 3,
        Claim.HARDWARE: 2,
    }
    assert appraisal.vector(REALM) == {
        Claim.INSTANCE_IDENTITY: 2,
        Claim.CONFIGURATION: 2,
        Claim.EXECUTABLES: 3,
        Claim.RUNTIME_OPAQUE: 32,
    }
    assert all(finding.reason for finding in appraisal.findings)


def test_the_host_can_see_the_realm_and_the_result_says_so(platform: Platform) -> None:
    """A warning: the measured host is trusted, and the page key is in its memory."""
    appraisal = judge(platform)
    assert appraisal.status(REALM) is Tier.WARNING
    (finding,) = (f for f in appraisal.of(REALM) if f.claim is Claim.RUNTIME_OPAQUE)
    assert "dram" in finding.reason


def test_all_that_is_wrong_is_told(platform: Platform) -> None:
    first, *others = platform.components
    changed = replace(platform, components=[replace(first, digest=bytes(32)), *others])
    appraisal = judge(platform, changed.token(claim(2395, 0x4000), claim(44238, bytes(32)), nonce=bytes(32)))
    wrong = {(f.attester, f.claim): f.error for f in appraisal.findings if f.error}
    assert set(wrong) == {
        (PLATFORM, Claim.CONFIGURATION),
        (PLATFORM, Claim.EXECUTABLES),
        (REALM, Claim.INSTANCE_IDENTITY),
        (REALM, Claim.EXECUTABLES),
    }
    component = wrong[PLATFORM, Claim.EXECUTABLES]
    assert isinstance(component, ComponentChanged) and component.component == "BL31"
    assert appraisal.status(PLATFORM) is appraisal.status(REALM) is Tier.CONTRAINDICATED
    with pytest.raises(InsecurePlatform):  # the first in the order of the checks
        accepted(appraisal)


def test_whose_realm_it_is_is_told_as_it_was_asked(platform: Platform) -> None:
    open_to_all = {"policy": Policy(measurements=frozenset({MEASUREMENT}))}
    for changes, told in (
        ({}, "it was started for an owner that is accepted"),
        (open_to_all, "any owner is accepted"),
        (open_to_all | {"expected_owner": PERSONALIZATION}, "it was started for the owner that is expected"),
    ):
        assert told in {finding.reason for finding in judge(platform, **changes).of(REALM)}


def test_what_is_not_signed_is_not_looked_at(platform: Platform) -> None:
    nobody = judge(platform, anchors=Anchors((), (platform.references,)))
    assert isinstance(nobody.error, UnknownRoot) and nobody.error.message == "no vendor's root is given"
    stranger = judge(platform, anchors=Anchors(tuple(Platform().roots), (platform.references,)))
    assert isinstance(stranger.error, UnknownRoot) and len(stranger.findings) == 1
    assert stranger.vector(PLATFORM) == {Claim.INSTANCE_IDENTITY: 97} and not stranger.vector(REALM)
    assert stranger.status(REALM) is Tier.NONE
    forged = replace(platform, pak=new_key(), chain=platform.endorsement)
    appraisal = judge(platform, forged.token())
    assert isinstance(appraisal.error, SignatureInvalid)
    assert appraisal.vector(PLATFORM) == {Claim.INSTANCE_IDENTITY: 99} and not appraisal.vector(REALM)
    halves = {**platform.halves(), 44241: replace(platform, rak=new_key()).halves()[44241]}
    appraisal = judge(platform, collection(halves))
    assert appraisal.vector(REALM) == {Claim.INSTANCE_IDENTITY: 99}
    assert appraisal.status(PLATFORM) is Tier.AFFIRMING and isinstance(appraisal.error, SignatureInvalid)


def test_revoked_platform(platform: Platform) -> None:
    serial = load_der_x509_certificate(platform.endorsement[0]).serial_number
    lists = (load_list(platform.authority.revocation_list(revoke={serial: ReasonFlags.key_compromise}, now=NOW)),)
    appraisal = judge(platform, anchors=Anchors(tuple(platform.roots), (platform.references,), lists))
    assert isinstance(appraisal.error, CertificateRevoked)
    assert appraisal.vector(PLATFORM) == {Claim.INSTANCE_IDENTITY: 96}


def test_stale_nonce(platform: Platform) -> None:
    appraisal = judge(platform, challenge=launch_challenge(bytes(32), INSTANCE))
    assert isinstance(appraisal.error, ChallengeMismatch)
    assert appraisal.status(PLATFORM) is Tier.AFFIRMING and appraisal.status(REALM) is Tier.CONTRAINDICATED


def test_what_the_policy_allows_is_a_warning(platform: Platform) -> None:
    appraisal = judge(platform, platform.token(realm=claim(-70003, True)), policy=replace(POLICY, allow_debug=True))
    assert accepted(appraisal).debug
    assert appraisal.vector(REALM)[Claim.CONFIGURATION] == 32
    insecure = platform.token(claim(2395, 0x1000), claim(-70004, True))
    appraisal = judge(platform, insecure, policy=replace(POLICY, allow_insecure=True))
    assert accepted(appraisal).insecure and appraisal.status(PLATFORM) is Tier.WARNING


def test_reference_values_of_several_builds(platform: Platform) -> None:
    """Any of them will do; of another implementation they are none."""
    other = ReferenceValues(platform.references.components[1:], platform.references.implementation_id)
    foreign = ReferenceValues(platform.references.components, bytes(32))
    roots = tuple(platform.roots)
    accepted(judge(platform, anchors=Anchors(roots, (foreign, other, platform.references))))
    with pytest.raises(ComponentChanged, match="BL31 has no reference value"):
        accepted(judge(platform, anchors=Anchors(roots, (foreign, other))))
    with pytest.raises(ComponentChanged, match="another implementation"):
        accepted(judge(platform, anchors=Anchors(roots, (foreign,))))
    with pytest.raises(ComponentChanged, match="no reference values"):
        accepted(judge(platform, anchors=Anchors(roots)))


def test_rubbish_is_not_appraised(platform: Platform) -> None:
    with pytest.raises(MalformedEvidence):
        judge(platform, b"rubbish")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, Tier.NONE) for value in (-1, 0, 1)),
        *((value, Tier.AFFIRMING) for value in (2, 31, -2, -32)),
        *((value, Tier.WARNING) for value in (32, 95, -33, -96)),
        *((value, Tier.CONTRAINDICATED) for value in (96, 127, -97, -128)),
    ],
)
def test_tiers(value: int, expected: Tier) -> None:
    """AR4SI, section 2.3.1."""
    assert tier(value) is expected


def test_the_worst_counts() -> None:
    findings = [Finding(REALM, Claim.EXECUTABLES, value, "x") for value in (3, 33, 0, 2)]
    assert vector(findings) == {Claim.EXECUTABLES: 33} and status(findings) is Tier.WARNING
    assert status([]) is Tier.NONE
