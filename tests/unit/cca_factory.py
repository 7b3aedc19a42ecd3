"""Tokens as a platform of Arm CCA issues them, right or wrong in one respect.

Written from draft-ffm-rats-cca-token and the RMM specification (A7.2), with another CBOR library than the product's and
without its COSE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

PLATFORM, REALM = 44234, 44241
EAT = 263
LEGACY = "http://arm.com/CCA-SSD/1.0.0"
PROFILES = {
    "legacy": (LEGACY, None),
    "legacy platform": (LEGACY, "tag:arm.com,2023:realm#1.0.0"),
    "1": ("tag:arm.com,2023:cca_platform#1.0.0", "tag:arm.com,2023:realm#1.0.0"),
    "2": ("tag:arm.com,2024:cca_platform#2.0.0", "tag:arm.com,2024:realm#2.0.0"),
}
UEID = b"\x01" + bytes(range(32))
DIGEST = hashlib.sha256(b"firmware").digest()
SIGNER = hashlib.sha256(b"a signer").digest()
CHALLENGE = hashlib.sha512(b"a challenge").digest()
CURVES: dict[str, tuple[int, int, HashAlgorithm]] = {  # COSE's curve and algorithm, and the hash
    "secp256r1": (1, -7, SHA256()),
    "secp384r1": (2, -35, SHA384()),
    "secp521r1": (3, -36, SHA512()),
}

Change = Callable[[dict[Any, Any]], object]


def unchanged(claims: dict[Any, Any]) -> None:
    pass


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def coordinates(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    size, numbers = (key.curve.key_size + 7) // 8, key.public_numbers()
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


def cose_key(key: ec.EllipticCurvePublicKey, change: Change = unchanged) -> bytes:
    x, y = coordinates(key)
    parameters: dict[Any, Any] = {1: 2, -1: CURVES[key.curve.name][0], -2: x, -3: y}
    change(parameters)
    return cbor2.dumps(parameters)


def sign1(
    key: ec.EllipticCurvePrivateKey,
    payload: bytes,
    *,
    protected: Mapping[Any, Any] | bytes | None = None,
    loose: Mapping[Any, Any] | None = None,
    change: Callable[[list[Any]], object] = lambda message: None,
) -> bytes:
    """A tagged COSE_Sign1; ``change`` may change its four parts after it is signed."""
    _, algorithm, scheme = CURVES[key.curve.name]
    header = protected if isinstance(protected, bytes) else cbor2.dumps({1: algorithm, **(protected or {})})
    signed = cbor2.dumps(["Signature1", header, b"", payload])
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(scheme)))
    message: list[Any] = [header, dict(loose or {}), payload, r.to_bytes(size, "big") + s.to_bytes(size, "big")]
    change(message)
    return cbor2.dumps(cbor2.CBORTag(18, message))


@dataclass
class Cca:
    """One platform and its monitor; ``version`` is a key of ``PROFILES``."""

    version: str = "2"
    cpak: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    rak: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    realm_key: bytes | None = None  # instead of the right form of ``rak``

    @property
    def rak_claim(self) -> bytes:
        if self.realm_key is not None:
            return self.realm_key
        public = self.rak.public_key()
        return b"\x04" + b"".join(coordinates(public)) if self.version == "legacy" else cose_key(public)

    def platform_claims(self) -> dict[Any, Any]:
        claims: dict[Any, Any] = {
            265: PROFILES[self.version][0],
            10: hashlib.sha256(self.rak_claim).digest(),
            2396: bytes(32),
            256: UEID,
            2401: b"\xcf\xcf",
            2395: 0x3003,
            2402: "sha-256",
            2400: "https://verifier.example",
            2399: [{1: "BL", 2: DIGEST, 4: "1.2", 5: SIGNER, 6: "sha-256"}, {2: DIGEST * 2, 5: SIGNER, 4: ""}],
        }
        if self.version != "2":
            return claims
        device = {1: "sha-384", 2: DIGEST, 3: SIGNER, 4: True, 5: "spdm-1.2.0", 6: DIGEST, 7: "cxl-type-3", 8: 1}
        other = {2: DIGEST, 3: SIGNER, 4: False, 5: "a protocol", 7: "a type"}
        claims[2399][0] |= {7: True, 8: [SIGNER, DIGEST]}
        return claims | {
            2394: 1,
            2403: b"\x12\x34",
            2404: [device, other],
            2405: [{1: "DM", 2: 0, 3: 1, 4: DIGEST}],
            2406: b"\x56",
        }

    def realm_claims(self) -> dict[Any, Any]:
        profile = PROFILES[self.version][1]
        claims: dict[Any, Any] = {} if profile is None else {265: profile}
        claims |= {
            10: CHALLENGE,
            44236: "sha-256",
            44240: "sha-256",
            44235: bytes(64),
            44237: self.rak_claim,
            44238: DIGEST,
            44239: [bytes(32), bytes(32), bytes(48), bytes(64)],
        }
        return claims | ({256: UEID, 44243: 1, 44244: 0} if self.version == "2" else {})

    def halves(self, platform: Change = unchanged, realm: Change = unchanged) -> dict[Any, bytes]:
        """Both signed halves; ``platform`` and ``realm`` may change the claims before they are signed."""
        platform_claims, realm_claims = self.platform_claims(), self.realm_claims()
        platform(platform_claims)
        realm(realm_claims)
        return {
            PLATFORM: sign1(self.cpak, cbor2.dumps(platform_claims)),
            REALM: sign1(self.rak, cbor2.dumps(realm_claims)),
        }

    def token(self, platform: Change = unchanged, realm: Change = unchanged) -> bytes:
        return records(self.halves(platform, realm))


def records(halves: Mapping[Any, Any], tag: int = 907) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, {key: [EAT, half] for key, half in halves.items()}))


def bare(halves: Mapping[Any, Any], tag: int = 399) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, dict(halves)))
