"""Evidence of the SM suite: verified from end to end, and never mixed with another suite's."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import pytest
from attest_factory import (
    INSTANCE,
    MEASUREMENT,
    NONCE,
    NOW,
    PERSONALIZATION,
    Change,
    Platform,
    collection,
    published,
    unchanged,
    verify,
)

from vambrace.attest import references, suites
from vambrace.attest.chain import load_roots
from vambrace.attest.challenge import channel_challenge, launch_challenge
from vambrace.attest.image import ImageStatement, sign_image, sign_successor, verify_image, verify_successor
from vambrace.attest.owner import OwnerIdentity, verify_verdict
from vambrace.attest.policy import Policy
from vambrace.attest.revocation import load_list
from vambrace.attest.verify import VerifiedRealm, verify_channel, verify_launch
from vambrace.errors import (
    CertificateRevoked,
    ChallengeMismatch,
    MeasurementMismatch,
    MessageRefused,
    SignatureInvalid,
    UnknownRoot,
    VerificationError,
)
from vambrace.suite import NIST, SM, SUITES, Suite
from vambrace.trustzone import RealmClaims
from vambrace.trustzone.insecure import InsecurePlatform

GOOD = {suite: Platform.of(suite) for suite in SUITES.values()}
OTHER = {NIST: SM, SM: NIST}
both = pytest.mark.parametrize("suite", SUITES.values(), ids=str)


def check(token: bytes, suite: Suite, **changes: Any) -> VerifiedRealm:
    """As a user who expects an image of ``suite``."""
    expected = {"policy": Policy(hash_algorithm=suite.hash), "challenge": launch_challenge(NONCE, INSTANCE, suite)}
    return verify(token, GOOD[suite], **{**expected, **changes})


@both
def test_evidence_of_each_suite(suite: Suite) -> None:
    token = GOOD[suite].token()
    realm = check(token, suite)
    assert (realm.hash_algorithm, realm.measurement) == (suite.hash, MEASUREMENT)
    assert realm.token_digest == suite.digest(token) and realm.token_sha256 == hashlib.sha256(token).digest()
    assert realm.platform_instance_id == b"\x01" + suite.digest(GOOD[suite].pak_cose)


def test_identifiers_are_as_documented() -> None:
    """Read with another library: docs/architecture.md, section 9."""
    halves = GOOD[SM].halves()
    for half in halves.values():
        protected, _, _, signature = cbor2.loads(half).value
        assert cbor2.loads(protected) == {1: -70100} and len(signature) == 64
    claims = cbor2.loads(cbor2.loads(halves[44241]).value[2])
    key = cbor2.loads(claims[44237])
    assert (key[1], key[-1], len(key[-2]), len(key[-3])) == (2, -70101, 32, 32)
    assert claims[44236] == claims[44240] == "sm3"


@both
def test_launch_and_channel(suite: Suite) -> None:
    platform = GOOD[suite]
    trust = {"roots": platform.roots, "references": references.load(published(platform), platform.roots, now=NOW)}
    given = {"measurement": MEASUREMENT, "personalization": PERSONALIZATION, "now": NOW}
    policy = Policy(hash_algorithm=suite.hash)
    verify_launch(platform.token(), nonce=NONCE, policy=policy, **trust, **given)  # type: ignore[arg-type]
    challenge = channel_challenge(NONCE, b"spki", INSTANCE, suite)
    token = platform.token(realm=lambda claims: claims.update({10: challenge}))
    channel = {"nonce": NONCE, "instance": INSTANCE, "policy": policy}
    verify_channel(token, spki=b"spki", **channel, **trust, **given)  # type: ignore[arg-type]
    with pytest.raises(ChallengeMismatch):
        verify_channel(token, spki=b"another", **channel, **trust, **given)  # type: ignore[arg-type]


# What mixes suites is refused, whatever of it is signed correctly


@both
def test_a_token_of_the_other_suite_is_not_what_was_expected(suite: Suite) -> None:
    other = OTHER[suite]
    challenge = launch_challenge(NONCE, INSTANCE, suite)
    token = GOOD[other].token(realm=lambda claims: claims.update({10: challenge}))
    with pytest.raises(MeasurementMismatch, match=other.hash):
        verify(token, GOOD[other], policy=Policy(hash_algorithm=suite.hash), challenge=challenge)


def named(**claims: Any) -> Change:
    return lambda found: found.update({int(key[1:]): value for key, value in claims.items()})


@both
@pytest.mark.parametrize("claim", ["c44236", "c44240"], ids=["measured with", "key bound with"])
def test_hashes_of_the_other_suite(suite: Suite, claim: str) -> None:
    token = GOOD[suite].token(realm=named(**{claim: OTHER[suite].hash}))
    for expected in SUITES.values():
        with pytest.raises(SignatureInvalid, match="different suites"):
            check(token, suite, policy=Policy(hash_algorithm=expected.hash))


@both
def test_a_realm_key_of_the_other_suite(suite: Suite) -> None:
    """The platform vouches for it, and it signs: but with what nobody asked for."""
    for binding in SUITES.values():
        mixed = Platform(GOOD[suite].authority, GOOD[suite].pak, suites.generate(OTHER[suite]), suite=suite)
        token = mixed.token(
            platform=lambda claims, mixed=mixed, binding=binding: claims.update(  # type: ignore[misc]
                {10: binding.digest(mixed.rak_cose)}
            )
        )
        with pytest.raises(SignatureInvalid, match="different suites"):
            check(token, suite)


@both
def test_a_half_that_names_the_other_algorithm(suite: Suite) -> None:
    halves = GOOD[suite].halves()
    for which in halves:
        tag = cbor2.loads(halves[which])
        tag.value[0] = cbor2.dumps({1: OTHER[suite].algorithm})
        with pytest.raises(VerificationError, match="is signed with|different suites"):
            check(collection({**halves, which: cbor2.dumps(tag)}), suite)


@both
def test_a_platform_key_that_the_other_suite_s_vendor_certifies(suite: Suite) -> None:
    with pytest.raises(UnknownRoot):
        check(GOOD[suite].token(), suite, roots=GOOD[OTHER[suite]].roots)


@both
def test_every_changed_byte_of_a_signature(suite: Suite) -> None:
    halves = GOOD[suite].halves()
    for which, half in halves.items():
        tag = cbor2.loads(half)
        signature = tag.value[3]
        for place in range(len(signature)):
            tag.value[3] = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
            with pytest.raises(SignatureInvalid):
                check(collection({**halves, which: cbor2.dumps(tag)}), suite)


# The vendor's other words


@both
def test_reference_values_and_revocation(suite: Suite) -> None:
    platform = GOOD[suite]
    roots = load_roots(platform.authority.certificate_pem)
    assert references.load(published(platform), roots, now=NOW).components == platform.references.components
    with pytest.raises(UnknownRoot):
        references.load(published(platform), GOOD[OTHER[suite]].roots, now=NOW)
    leaf = platform.authority.certify(platform.pak_cose, now=NOW)
    from cryptography import x509

    listed = platform.authority.revocation_list(revoke={leaf.serial_number: x509.ReasonFlags.key_compromise}, now=NOW)
    revoked = Platform(platform.authority, platform.pak, platform.rak, suite=suite)
    revoked.chain = [leaf.public_bytes(suites.Encoding.DER)]
    with pytest.raises(CertificateRevoked):
        check(revoked.token(unchanged), suite, revocation_lists=(load_list(listed),))
    foreign = Platform.of(suite).authority.revocation_list(
        revoke={leaf.serial_number: x509.ReasonFlags.key_compromise}, now=NOW
    )
    check(revoked.token(), suite, revocation_lists=(load_list(foreign),))


# What owners sign


@both
def test_an_owner_s_messages(suite: Suite, tmp_path: Any) -> None:
    mine, theirs = (OwnerIdentity.create(tmp_path / kind.name, suite=kind) for kind in (suite, OTHER[suite]))
    digest = suite.digest(b"a token")
    message = mine.sign_verdict(INSTANCE, digest, yes=True)
    expected = {"instance": INSTANCE, "token_digest": digest}
    assert verify_verdict(message, owner=mine.certificate_pem, **expected)  # type: ignore[arg-type]
    with pytest.raises(MessageRefused, match="not signed by the owner"):
        verify_verdict(message, owner=theirs.certificate_pem, **expected)  # type: ignore[arg-type]
    with pytest.raises(MessageRefused, match="not signed by the owner"):
        verify_verdict(theirs.sign_verdict(INSTANCE, digest, yes=True), owner=mine.certificate_pem, **expected)  # type: ignore[arg-type]


@both
def test_a_platform_owner_s_messages(suite: Suite) -> None:
    key, other = suites.generate(suite), suites.generate(OTHER[suite])
    spki = suites.spki(key.public_key())
    statement = ImageStatement.of("secure", suite.hash, MEASUREMENT, b"{}")
    assert verify_image(sign_image(key, statement), spki) == statement
    assert statement.config == suite.digest(b"{}")
    with pytest.raises(MessageRefused, match="platform owner"):
        verify_image(sign_image(other, statement), spki)
    successor = suites.spki(suites.generate(suite).public_key())
    assert verify_successor(sign_successor(key, b"p", successor, 1), spki, b"p", 1) == successor


@both
def test_the_insecure_stand_in_has_the_suite_too(suite: Suite) -> None:
    request = RealmClaims(INSTANCE, MEASUREMENT, (bytes(32),) * 4, PERSONALIZATION, bytes(64), suite=suite)
    with InsecurePlatform(suite) as stand_in:
        halves = {key: half for key, (_, half) in cbor2.loads(stand_in.evidence(request)).value.items()}
        key = cbor2.loads(stand_in.platform_key())
    assert key[-1] == suite.curve
    assert all(cbor2.loads(cbor2.loads(half).value[0]) == {1: suite.algorithm} for half in halves.values())
