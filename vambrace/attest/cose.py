"""COSE_Sign1 and COSE_Key (RFC 9052, 9053) with ES256, in deterministic CBOR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vambrace.attest.cbor import Tag, decode, encode
from vambrace.errors import MalformedEvidence, SignatureInvalid

SIGN1_TAG: Final = 18
ALGORITHM: Final = 1
X5CHAIN: Final = 33  # RFC 9360
ES256: Final = -7

_COORDINATE: Final = 32
_MAX_SIGN1: Final = 64 << 10
_MAX_KEY: Final = 128


@dataclass(frozen=True)
class Sign1:
    """A decoded COSE_Sign1, not verified: ``verify`` says whether a key signed it."""

    protected: Mapping[int | str, Any]
    unprotected: Mapping[int | str, Any]
    payload: bytes
    signature: bytes

    def verify(self, key: EllipticCurvePublicKey, what: str) -> bytes:
        """The payload, if ``key`` signed it. Raises ``SignatureInvalid``, which names ``what``."""
        r, s = self.signature[:_COORDINATE], self.signature[_COORDINATE:]
        der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
        try:
            key.verify(der, _to_be_signed(encode(dict(self.protected)), self.payload), ECDSA(SHA256()))
        except InvalidSignature:
            raise SignatureInvalid(f"the signature of the {what} does not verify") from None
        return self.payload


def sign1(
    key: EllipticCurvePrivateKey,
    payload: bytes,
    *,
    protected: Mapping[int | str, Any] | None = None,
    unprotected: Mapping[int | str, Any] | None = None,
) -> bytes:
    """``payload`` as a tagged COSE_Sign1 of ``key`` (P-256). ``protected`` is beside the algorithm."""
    if not isinstance(key.curve, SECP256R1):
        raise ValueError("ES256 needs a key on P-256")
    header = encode({**(protected or {}), ALGORITHM: ES256})
    r, s = decode_dss_signature(key.sign(_to_be_signed(header, payload), ECDSA(SHA256())))
    signature = r.to_bytes(_COORDINATE, "big") + s.to_bytes(_COORDINATE, "big")
    return encode(Tag(SIGN1_TAG, [header, dict(unprotected or {}), payload, signature]))


def decode_sign1(
    data: bytes,
    what: str,
    *,
    protected: frozenset[int] = frozenset(),
    unprotected: frozenset[int] = frozenset(),
) -> Sign1:
    """Read a tagged COSE_Sign1 with ES256, whoever wrote it.

    ``protected`` (beside the algorithm) and ``unprotected`` are the header parameters that may be there.
    Raises ``MalformedEvidence``, which names ``what``.
    """
    value = decode(data, limit=_MAX_SIGN1)
    if not isinstance(value, Tag) or value.number != SIGN1_TAG or not isinstance(value.value, list):
        raise MalformedEvidence(f"the {what} is not a COSE_Sign1")
    match value.value:
        case [bytes(header), dict(loose), bytes(payload), bytes(signature)]:
            pass
        case _:
            raise MalformedEvidence(f"the {what} is not a COSE_Sign1")
    parameters = decode(header, limit=_MAX_SIGN1)
    if not isinstance(parameters, dict) or parameters.get(ALGORITHM) != ES256:
        raise MalformedEvidence(f"the {what} is not signed with ES256")
    if not set(parameters) <= protected | {ALGORITHM} or not set(loose) <= unprotected:
        raise MalformedEvidence(f"the {what} has header parameters that are not known")
    if len(signature) != 2 * _COORDINATE:
        raise MalformedEvidence(f"the signature of the {what} has the wrong length")
    return Sign1(parameters, loose, payload, signature)


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure (RFC 9052, 4.4) with no external data."""
    return encode(["Signature1", protected, b"", payload])


def encode_key(key: EllipticCurvePublicKey) -> bytes:
    """The COSE_Key encoding of a P-256 key: kty EC2, crv P-256, x, y and nothing else."""
    if not isinstance(key.curve, SECP256R1):
        raise ValueError("the key is not on P-256")
    numbers = key.public_numbers()
    x, y = (number.to_bytes(_COORDINATE, "big") for number in (numbers.x, numbers.y))
    return encode({1: 2, -1: 1, -2: x, -3: y})


def decode_key(data: bytes) -> EllipticCurvePublicKey:
    """The key that ``data`` encodes. Raises ``MalformedEvidence``, also for a point off the curve."""
    match decode(data, limit=_MAX_KEY):
        case {1: 2, -1: 1, -2: bytes(x), -3: bytes(y), **rest} if (
            not rest and len(x) == len(y) == _COORDINATE
        ):
            pass
        case _:
            raise MalformedEvidence("a key is not a COSE_Key on P-256")
    numbers = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1())
    try:
        key = numbers.public_key()
    except ValueError:
        raise MalformedEvidence("a key is not a point of P-256") from None
    if encode_key(key) != data:  # "true" compares equal to 1
        raise MalformedEvidence("a key is not a COSE_Key on P-256")
    return key
