"""EAT Attestation Results (draft-ietf-rats-ear-04): an appraisal as a signed token, JWT or CWT.

The two attesters of a token are submodules, ``platform`` and ``realm``. Each has its status, its AR4SI trustworthiness
vector, what it claims (``ear_attester_claims``, only if it was found to have signed that), and under
``ear_verifier_claims`` the verdict with the finding and reason of every check.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from vambrace import __version__
from vambrace.attest.appraisal import Appraisal
from vambrace.attest.cbor import decode, encode
from vambrace.attest.cose import decode_sign1, sign1
from vambrace.attest.show import describe
from vambrace.attest.trustworthiness import PLATFORM, REALM, Claim, Finding, Tier
from vambrace.errors import CertificateExpired, MalformedEvidence, SignatureInvalid, UsageError

PROFILE: Final = "tag:ietf.org,2026:rats/ear#04"
JWT_TYPE: Final = f'application/eat-jwt; eat_profile="{PROFILE}"'
CWT_TYPE: Final = f'application/eat-cwt; eat_profile="{PROFILE}"'
LIFETIME: Final = timedelta(minutes=5)
MAX_RESULT: Final = 256 << 10

# Keys of the CBOR serialization: RFC 9711, RFC 8392, and those that the draft suggests.
_EXP, _IAT, _NONCE, _EAT_PROFILE, _SUBMODS = 4, 6, 10, 265, 266
_STATUS, _VECTOR, _POLICIES, _VERIFIER, _ATTESTER_CLAIMS, _VERIFIER_CLAIMS = 1000, 1001, 1003, 1004, 1005, 1006
_KEYS: Final = {
    "exp": _EXP,
    "iat": _IAT,
    "eat_nonce": _NONCE,
    "eat_profile": _EAT_PROFILE,
    "submods": _SUBMODS,
    "ear_verifier_id": _VERIFIER,
    "ear_status": _STATUS,
    "ear_trustworthiness_vector": _VECTOR,
    "ear_appraisal_policy_ids": _POLICIES,
    "ear_attester_claims": _ATTESTER_CLAIMS,
    "ear_verifier_claims": _VERIFIER_CLAIMS,
}
_NAMES: Final = {key: name for name, key in _KEYS.items()}
_TIERS: Final = {tier.label: int(tier) for tier in Tier}
_CLAIMS: Final = {claim.label: int(claim) for claim in Claim}
_LEEWAY: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class VerifierIdentity:
    """Who appraised (AR4SI, section 3.3)."""

    developer: str = "tag:vambrace.dev,2026:verifier"
    build: str = f"vambrace {__version__}"


def claims_set(
    appraisal: Appraisal,
    *,
    nonce: bytes | None = None,
    now: datetime | None = None,
    lifetime: timedelta = LIFETIME,
    verifier: VerifierIdentity | None = None,
) -> dict[str, Any]:
    """The claims of the result, as JSON has them. ``nonce`` (8 to 64 bytes) is that of who asked for the result, not
    the evidence's; it is given back.
    """
    verifier = verifier or VerifierIdentity()
    issued = int((now or datetime.now(UTC)).timestamp())
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": issued,
        "exp": issued + int(lifetime.total_seconds()),
        "ear_verifier_id": {"developer": verifier.developer, "build": verifier.build},
        "ear_status": max(appraisal.status(attester) for attester in (PLATFORM, REALM)).label,
        "submods": {attester: _submodule(appraisal, attester) for attester in (PLATFORM, REALM)},
    }
    if nonce is not None:
        if not 8 <= len(nonce) <= 64:
            raise UsageError(f"the nonce of a result has 8 to 64 bytes, not {len(nonce)}")
        claims["eat_nonce"] = _base64(nonce)
    return claims


def _submodule(appraisal: Appraisal, attester: str) -> dict[str, Any]:
    # A vector is never empty; zero says that nothing is claimed.
    vector = appraisal.vector(attester) or {Claim.INSTANCE_IDENTITY: 0}
    module: dict[str, Any] = {
        "ear_status": appraisal.status(attester).label,
        "ear_trustworthiness_vector": {claim.label: value for claim, value in vector.items()},
        "ear_appraisal_policy_ids": [appraisal.policy.name],
        "ear_verifier_claims": {
            "verdict": "refused" if appraisal.error else "accepted",
            "policy-sha256": appraisal.policy.digest().hex(),
            "evidence-sha256": appraisal.sha256.hex(),
            "findings": [_finding(finding) for finding in appraisal.of(attester)],
        },
    }
    if appraisal.authentic:
        evidence = appraisal.evidence
        challenge = evidence.platform.challenge if attester == PLATFORM else evidence.realm.challenge
        module["eat_nonce"] = _base64(challenge)
        module["ear_attester_claims"] = describe(appraisal.token)[attester]
    return module


def _finding(finding: Finding) -> dict[str, Any]:
    told: dict[str, Any] = {"claim": finding.claim.label, "value": finding.value, "reason": finding.reason}
    if finding.error:
        told["error"] = type(finding.error).__name__
    return told


# --- signed ---------------------------------------------------------------------------------------------


def sign_jwt(claims: Mapping[str, Any], key: EllipticCurvePrivateKey) -> str:
    """``claims`` as a JWT (RFC 7519), ES256; its ``kid`` is the key's thumbprint (RFC 7638)."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    header = {"alg": "ES256", "typ": "JWT", "kid": thumbprint(key.public_key())}
    return jwt.encode(header, dict(claims), ECKey.import_key(pem), algorithms=["ES256"])


def verify_jwt(
    token: str | bytes, key: EllipticCurvePublicKey, *, nonce: bytes | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """The claims of a result, for the party that relies on it; ``nonce`` is the one it sent.

    Raises ``MalformedEvidence``, ``SignatureInvalid``, ``CertificateExpired``.
    """
    if len(token) > MAX_RESULT:
        raise MalformedEvidence(f"the attestation result is longer than {MAX_RESULT} bytes")
    try:
        claims = jwt.decode(token, _public(key), algorithms=["ES256"]).claims
    except (JoseError, ValueError, TypeError, RecursionError):
        raise SignatureInvalid("the signature of the attestation result does not verify") from None
    return _checked(claims, nonce, now)


def sign_cwt(claims: Mapping[str, Any], key: EllipticCurvePrivateKey) -> bytes:
    """``claims`` as a CWT (RFC 8392): a COSE_Sign1 over their CBOR serialization."""
    return sign1(key, encode(_to_cbor(claims)))


def verify_cwt(
    token: bytes, key: EllipticCurvePublicKey, *, nonce: bytes | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """As ``verify_jwt``; the claims are given as JSON has them."""
    payload = decode_sign1(token, "attestation result").verify(key, "attestation result")
    return _checked(_from_cbor(decode(payload, limit=MAX_RESULT)), nonce, now)


def public_jwk(key: EllipticCurvePublicKey) -> dict[str, Any]:
    """The key by which results are verified, as a JWK (RFC 7517)."""
    parameters: dict[str, Any] = dict(_public(key).as_dict(private=False))
    return {**parameters, "use": "sig", "alg": "ES256", "kid": thumbprint(key)}


def thumbprint(key: EllipticCurvePublicKey) -> str:
    return _public(key).thumbprint()


def _public(key: EllipticCurvePublicKey) -> ECKey:
    return ECKey.import_key(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _checked(claims: Any, nonce: bytes | None, now: datetime | None) -> dict[str, Any]:
    if not isinstance(claims, dict) or claims.get("eat_profile") != PROFILE:
        raise MalformedEvidence("the attestation result is of another profile")
    issued, expires = claims.get("iat"), claims.get("exp")
    if type(issued) is not int or type(expires) is not int or not isinstance(claims.get("submods"), dict):
        raise MalformedEvidence("the attestation result lacks a claim, or has one of a wrong type")
    time = now or datetime.now(UTC)
    if not issued - _LEEWAY.total_seconds() <= time.timestamp() <= expires:
        raise CertificateExpired("the attestation result is out of its validity", hint="have it appraised again")
    if nonce is not None and claims.get("eat_nonce") != _base64(nonce):
        raise SignatureInvalid("the attestation result answers another nonce")
    return claims


def _base64(data: bytes) -> str:
    """With padding: a nonce has 12 to 88 characters."""
    return base64.urlsafe_b64encode(data).decode()


# --- CBOR -----------------------------------------------------------------------------------------------


def _to_cbor(claims: Mapping[str, Any]) -> dict[int, Any]:
    return {_KEYS[name]: _value_to_cbor(name, value) for name, value in claims.items()}


def _value_to_cbor(name: str, value: Any) -> Any:
    match name:
        case "eat_nonce":
            return base64.urlsafe_b64decode(value)
        case "submods":
            return {attester: _to_cbor(module) for attester, module in value.items()}
        case "ear_verifier_id":
            return {0: value["developer"], 1: value["build"]}
        case "ear_status":
            return _TIERS[value]
        case "ear_trustworthiness_vector":
            return {_CLAIMS[claim]: number for claim, number in value.items()}
        case _:
            return value


def _from_cbor(claims: Any) -> dict[str, Any]:
    if not isinstance(claims, dict) or not claims.keys() <= _NAMES.keys():
        raise MalformedEvidence("the attestation result has claims that are not known")
    return {_NAMES[key]: _value_from_cbor(_NAMES[key], value) for key, value in claims.items()}


def _value_from_cbor(name: str, value: Any) -> Any:
    tiers, vector = ({number: word for word, number in words.items()} for words in (_TIERS, _CLAIMS))
    match name, value:
        case "eat_nonce", bytes():
            return _base64(value)
        case "submods", dict():
            return {str(attester): _from_cbor(module) for attester, module in value.items()}
        case "ear_verifier_id", {0: str(developer), 1: str(build)}:
            return {"developer": developer, "build": build}
        case "ear_status", int() if value in tiers:
            return tiers[value]
        case "ear_trustworthiness_vector", dict() if value.keys() <= vector.keys():
            return {vector[claim]: number for claim, number in value.items()}
        case ("eat_nonce" | "submods" | "ear_verifier_id" | "ear_status" | "ear_trustworthiness_vector"), _:
            raise MalformedEvidence(f"claim {name} of the attestation result is of a wrong type")
        case _:
            return value
