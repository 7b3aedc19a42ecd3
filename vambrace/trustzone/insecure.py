"""A stand-in for machines without TrustZone: software keys, and tokens that say so.

Never chosen by default, and refused by every verifier that was not told otherwise: it proves nothing.
"""

from __future__ import annotations

import hashlib
import os
from types import TracebackType
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from vambrace.errors import TrustZoneError
from vambrace.trustzone.claims import RealmClaims

LIFECYCLE: Final = 0x1000
PLATFORM_PROFILE: Final = "tag:vambrace.dev,2026:platform#1"
REALM_PROFILE: Final = "tag:vambrace.dev,2026:realm#1"

#: The one component of a platform that measures nothing.
COMPONENT: Final = "INSECURE"
COMPONENT_DIGEST: Final = hashlib.sha256(b"vambrace-insecure-platform-1").digest()

_PROTECTED: Final = bytes.fromhex("a10126")


class InsecurePlatform:
    """The interface of ``TrustZone``. Its keys live in this process's memory and end with it."""

    def __init__(self) -> None:
        self._platform = ec.generate_private_key(ec.SECP256R1())
        self._realm = ec.generate_private_key(ec.SECP256R1())

    def __enter__(self) -> InsecurePlatform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to close: there is no session."""

    def platform_key(self) -> bytes:
        """COSE_Key of the software key that stands for the platform's."""
        return _cose_key(self._platform)

    def lifecycle(self) -> int:
        """Always "not provisioned"."""
        return LIFECYCLE

    def lock(self) -> None:
        """Raises TrustZoneError: there is no fuse."""
        raise TrustZoneError("an insecure platform has no life cycle to secure")

    def random(self, length: int) -> bytes:
        """``length`` bytes from the kernel's generator, for want of another. Raises TrustZoneError."""
        if length < 0:
            raise TrustZoneError("a number of random bytes is not negative")
        return os.urandom(length)

    def evidence(self, request: RealmClaims) -> bytes:
        """As ``TrustZone.evidence``, with claim -70004 (insecure) true."""
        rak = _cose_key(self._realm)
        platform = {
            265: PLATFORM_PROFILE,
            10: hashlib.sha256(rak).digest(),
            2396: hashlib.sha256(b"vambrace-platform-1/insecure").digest(),
            256: b"\x01" + hashlib.sha256(self.platform_key()).digest(),
            2401: b"",
            2395: LIFECYCLE,
            2402: "sha-256",
            2399: [{1: COMPONENT, 2: COMPONENT_DIGEST, 5: bytes(32), 6: "sha-256"}],
        }
        realm = {
            265: REALM_PROFILE,
            10: request.challenge,
            44235: request.personalization,
            44238: request.rim,
            44239: list(request.rems),
            44236: request.hash_algorithm,
            44237: rak,
            44240: "sha-256",
            -70001: request.instance,
            -70002: request.key_storage,
            -70003: request.debug,
            -70004: True,
            -70005: request.cache_partition,
        }
        collection = {44234: _sign1(self._platform, platform), 44241: _sign1(self._realm, realm)}
        return _encode(cbor2.CBORTag(907, collection))


def _sign1(key: ec.EllipticCurvePrivateKey, claims: dict[int, Any]) -> bytes:
    payload = _encode(claims)
    to_sign = _encode(["Signature1", _PROTECTED, b"", payload])
    r, s = decode_dss_signature(key.sign(to_sign, ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return _encode(cbor2.CBORTag(18, [_PROTECTED, {}, payload, signature]))


def _cose_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return _encode({1: 2, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")})


def _encode(value: Any) -> bytes:
    """Deterministic CBOR (RFC 8949 section 4.2.1): cbor2's canonical order is the same for integer keys."""
    return cbor2.dumps(value, canonical=True)
