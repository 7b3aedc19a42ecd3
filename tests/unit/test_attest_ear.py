"""Attestation results: what an appraisal found, signed, in both serializations."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from attest_factory import INSTANCE, MEASUREMENT, NONCE, NOW, PERSONALIZATION, Change, Platform, new_key
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vambrace.attest import ear
from vambrace.attest.anchors import Anchors
from vambrace.attest.appraisal import Appraisal, appraise
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.policy import Policy
from vambrace.errors import CertificateExpired, MalformedEvidence, SignatureInvalid, UsageError

KEY = new_key()
POLICY = Policy(
    identifier="tag:example.org,2026:policy#1",
    measurements=frozenset({MEASUREMENT}),
    owners=frozenset({PERSONALIZATION}),
)


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


def nothing(claims: dict[int, Any]) -> None:
    pass


def judge(platform: Platform, realm: Change = nothing, **changes: Any) -> Appraisal:
    known = {"anchors": Anchors(tuple(platform.roots), (platform.references,)), "policy": POLICY, "now": NOW}
    known["challenge"] = launch_challenge(NONCE, INSTANCE)
    return appraise(platform.token(realm=realm), **{**known, **changes})


def result(platform: Platform, **changes: Any) -> dict[str, Any]:
    return ear.claims_set(judge(platform, **changes), nonce=NONCE, now=NOW)


def test_the_claims(platform: Platform) -> None:
    """draft-ietf-rats-ear-04, figures 1 and 2."""
    claims = result(platform)
    assert claims["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert (claims["iat"], claims["exp"]) == (int(NOW.timestamp()), int(NOW.timestamp()) + 300)
    assert base64.urlsafe_b64decode(claims["eat_nonce"]) == NONCE
    assert set(claims["ear_verifier_id"]) == {"developer", "build"}
    assert claims["ear_status"] == "warning"  # the page key is in memory
    realm, machine = claims["submods"]["realm"], claims["submods"]["platform"]
    assert machine["ear_status"] == "affirming"
    assert machine["ear_trustworthiness_vector"] == {
        "instance-identity": 2,
        "configuration": 2,
        "executables": 3,
        "hardware": 2,
    }
    assert realm["ear_appraisal_policy_ids"] == ["tag:example.org,2026:policy#1"]
    assert base64.urlsafe_b64decode(realm["eat_nonce"]) == launch_challenge(NONCE, INSTANCE)
    assert realm["ear_attester_claims"]["measurement"] == MEASUREMENT.hex()
    assert realm["ear_verifier_claims"]["verdict"] == "accepted"
    assert realm["ear_verifier_claims"]["policy-sha256"] == POLICY.digest().hex()
    assert all(finding["reason"] for finding in realm["ear_verifier_claims"]["findings"])


def test_a_refusal_has_its_reason(platform: Platform) -> None:
    claims = result(platform, realm=lambda token: token.update({44238: bytes(32)}))
    realm = claims["submods"]["realm"]
    assert claims["ear_status"] == realm["ear_status"] == "contraindicated"
    assert realm["ear_verifier_claims"]["verdict"] == "refused"
    (finding,) = (f for f in realm["ear_verifier_claims"]["findings"] if "error" in f)
    assert (finding["claim"], finding["value"], finding["error"]) == ("executables", 33, "MeasurementMismatch")
    assert "measurement" in finding["reason"]


def test_what_nobody_signed_is_not_passed_on(platform: Platform) -> None:
    """No claim of a token is in the result if its signatures do not lead to a root."""
    claims = result(platform, anchors=Anchors(tuple(Platform().roots), (platform.references,)))
    for module in claims["submods"].values():
        assert "ear_attester_claims" not in module and "eat_nonce" not in module
    assert claims["submods"]["realm"]["ear_trustworthiness_vector"] == {"instance-identity": 0}
    assert claims["submods"]["realm"]["ear_status"] == "none"
    assert claims["submods"]["platform"]["ear_trustworthiness_vector"] == {"instance-identity": 97}


def test_jwt(platform: Platform) -> None:
    claims = result(platform)
    token = ear.sign_jwt(claims, KEY)
    assert ear.verify_jwt(token, KEY.public_key(), nonce=NONCE, now=NOW) == claims
    header, payload, signature = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
    assert json.loads(header) == {"alg": "ES256", "typ": "JWT", "kid": ear.public_jwk(KEY.public_key())["kid"]}
    assert json.loads(payload) == claims
    # With another library than the one that signed.
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    KEY.public_key().verify(der, token.rpartition(".")[0].encode(), ECDSA(SHA256()))


def test_cwt(platform: Platform) -> None:
    claims = result(platform)
    token = ear.sign_cwt(claims, KEY)
    assert ear.verify_cwt(token, KEY.public_key(), nonce=NONCE, now=NOW) == claims
    message = cbor2.loads(token)
    assert message.tag == 18
    read = cbor2.loads(message.value[2])
    assert read[265] == ear.PROFILE and read[10] == NONCE and read[1000] == 32
    assert read[266]["platform"][1001] == {0: 2, 1: 2, 2: 3, 4: 2}
    assert read[1004] == {0: claims["ear_verifier_id"]["developer"], 1: claims["ear_verifier_id"]["build"]}


def test_another_s_signature(platform: Platform) -> None:
    claims, other = result(platform), new_key()
    with pytest.raises(SignatureInvalid):
        ear.verify_jwt(ear.sign_jwt(claims, other), KEY.public_key(), now=NOW)
    with pytest.raises(SignatureInvalid):
        ear.verify_cwt(ear.sign_cwt(claims, other), KEY.public_key(), now=NOW)


def test_a_changed_result(platform: Platform) -> None:
    header, payload, signature = ear.sign_jwt(result(platform), KEY).split(".")
    changed = json.loads(base64.urlsafe_b64decode(payload + "=="))
    changed["ear_status"] = "affirming"
    forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode()
    with pytest.raises(SignatureInvalid):
        ear.verify_jwt(f"{header}.{forged}.{signature}", KEY.public_key(), now=NOW)
    for algorithm in ("none", "HS256"):
        unsigned = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).rstrip(b"=").decode()
        with pytest.raises(SignatureInvalid):
            ear.verify_jwt(f"{unsigned}.{forged}.", KEY.public_key(), now=NOW)


def test_out_of_its_time_and_for_another_nonce(platform: Platform) -> None:
    token = ear.sign_jwt(result(platform), KEY)
    for time in (NOW + timedelta(minutes=6), NOW - timedelta(minutes=6)):
        with pytest.raises(CertificateExpired):
            ear.verify_jwt(token, KEY.public_key(), now=time)
    with pytest.raises(SignatureInvalid, match="another nonce"):
        ear.verify_jwt(token, KEY.public_key(), nonce=bytes(32), now=NOW)


@pytest.mark.parametrize("change", [{"eat_profile": "x"}, {"iat": 1.5}, {"exp": None}, {"submods": []}, {"iat": True}])
def test_malformed(platform: Platform, change: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvidence):
        ear.verify_jwt(ear.sign_jwt({**result(platform), **change}, KEY), KEY.public_key(), now=NOW)


@pytest.mark.parametrize(
    "change", [{7: 1}, {1000: 7}, {266: [1]}, {1001: {9: 2}}, {10: "text"}, {1004: {}}, {266: {"realm": {1: 1}}}]
)
def test_malformed_cwt(platform: Platform, change: dict[int, Any]) -> None:
    claims = cbor2.loads(cbor2.loads(ear.sign_cwt(result(platform), KEY)).value[2])
    token = ear.sign1(KEY, cbor2.dumps({**claims, **change}, canonical=True))
    with pytest.raises(MalformedEvidence):
        ear.verify_cwt(token, KEY.public_key(), now=NOW)


@pytest.mark.parametrize("token", ["", "a.b.c", "....", "\u00e9", b"\xff", "e30.e30.e30"])
def test_rubbish(token: str | bytes) -> None:
    with pytest.raises(SignatureInvalid):
        ear.verify_jwt(token, KEY.public_key())


def test_nonces_have_a_length(platform: Platform) -> None:
    for length in (7, 65):
        with pytest.raises(UsageError):
            ear.claims_set(judge(platform), nonce=bytes(length))
