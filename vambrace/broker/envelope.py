"""What leaves the broker: a JWE (RFC 7516) for the key that the evidence vouches for, as the KBS protocol has it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers
from joserfc.jwe import FlattenedJSONEncryption, JWERegistry, encrypt_json
from joserfc.jwk import ECKey

from vambrace.canonical import canonical
from vambrace.errors import MalformedEvidence

ALGORITHM: Final = "ECDH-ES+A256KW"
ENCRYPTION: Final = "A256GCM"
CURVE: Final = "P-256"
_COORDINATE: Final = 32
#: What a resource is stands in headers of our own.
_REGISTRY: Final = JWERegistry(algorithms=[ALGORITHM, ENCRYPTION], strict_check_header=False)


@dataclass(frozen=True)
class TeeKey:
    """The public key that a Realm made for one session: coordinates on P-256, 32 bytes each."""

    x: bytes
    y: bytes

    @classmethod
    def parse(cls, value: Any) -> TeeKey:
        """Read the ``tee-pubkey`` of a KBS attestation, a JWK. Raises ``MalformedEvidence``."""
        match value:
            case {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": str(x), "y": str(y)} if len(value) == 5:
                key = cls(_coordinate(x), _coordinate(y))
            case _:
                raise MalformedEvidence(
                    "tee-pubkey is not a key that is known here", hint=f"a JWK: EC, {CURVE}, {ALGORITHM}"
                )
        try:
            numbers = int.from_bytes(key.x, "big"), int.from_bytes(key.y, "big")
            EllipticCurvePublicNumbers(*numbers, SECP256R1()).public_key()
        except ValueError:
            raise MalformedEvidence("tee-pubkey is not a point on its curve") from None
        return key

    def jwk(self) -> dict[str, str]:
        return {"kty": "EC", "crv": CURVE, "x": base64url(self.x), "y": base64url(self.y)}

    def thumbprint(self) -> bytes:
        """SHA-256 of RFC 7638: what the evidence is bound to, 32 bytes."""
        return hashlib.sha256(canonical(self.jwk())).digest()


def encrypt(plaintext: bytes, key: TeeKey, header: dict[str, str | int]) -> str:
    """The flattened JSON serialization; ``header`` is protected, beside algorithm and encryption."""
    envelope = FlattenedJSONEncryption({**header, "alg": ALGORITHM, "enc": ENCRYPTION}, plaintext)
    envelope.add_recipient(None, ECKey.import_key({**key.jwk()}))
    return json.dumps(encrypt_json(envelope, None, registry=_REGISTRY))


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _coordinate(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    if len(data) != _COORDINATE or base64url(data) != text:
        raise MalformedEvidence("a coordinate of tee-pubkey is not 32 bytes in base64url")
    return data
