"""Public keys in the forms of tokens: COSE_Key (RFC 9052, 7; RFC 9053, 7.1.1) and, in the oldest, a bare point."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)

from vambrace.attest import suites
from vambrace.attest.cbor import decode, decode_tolerant, encode
from vambrace.attest.suites import PublicKey, suite_of
from vambrace.errors import MalformedEnvelope
from vambrace.suite import BY_CURVE

_KTY, _KID, _ALG, _KEY_OPS, _CRV, _X, _Y = 1, 2, 3, 4, -1, -2, -3
_EC2: Final = 2
_VERIFY: Final = 2
#: By COSE identifier: the curve, and the algorithms (RFC 9053, RFC 9864) of which a key may say that it is for one.
_CURVES: Final[dict[int, tuple[EllipticCurve, frozenset[int]]]] = {
    1: (SECP256R1(), frozenset({-7, -9})),
    2: (SECP384R1(), frozenset({-35, -51})),
    3: (SECP521R1(), frozenset({-36, -52})),
}
_COORDINATE: Final = 32
_MAX_KEY: Final = 128
_MAX_CCA_KEY: Final = 256
_POINT_BYTES: Final = 97  # SEC 1, 2.3.3: 0x04 and both coordinates on P-384


def encode_key(key: PublicKey) -> bytes:
    """The COSE_Key encoding of a suite's key: kty EC2, crv, x, y and nothing else. Raises ``ValueError``."""
    point = suites.point(key)
    return encode({_KTY: _EC2, _CRV: suite_of(key).curve, _X: point[:_COORDINATE], _Y: point[_COORDINATE:]})


# A boot has one realm key, which comes with every token.
@lru_cache(maxsize=1024)
def decode_key(data: bytes) -> PublicKey:
    """The key that ``data`` encodes as ``encode_key`` does; raises ``MalformedEvidence`` for any other bytes."""
    match decode(data, limit=_MAX_KEY):
        case {1: 2, -1: int(curve), -2: bytes(x), -3: bytes(y), **rest} if (
            not rest and curve in BY_CURVE and len(x) == len(y) == _COORDINATE
        ):
            pass
        case _:
            raise MalformedEnvelope("a key is not a COSE_Key of a suite: on P-256, or of SM2")
    try:
        key = suites.load_public(BY_CURVE[curve].encode_spki(x + y))
    except ValueError:
        raise MalformedEnvelope("a key is not a point of its curve") from None
    if encode_key(key) != data:  # "true" compares equal to 1
        raise MalformedEnvelope("a key is not a COSE_Key of a suite: on P-256, or of SM2")
    return key


@lru_cache(maxsize=1024)
def decode_cca_key(data: bytes) -> EllipticCurvePublicKey:
    """The key of a COSE_Key as Arm's tokens carry it, on P-256, P-384 or P-521.

    The encoding may vary as ``cbor.decode_tolerant`` allows, y may be a sign (RFC 9053, 7.1.1), and kid, alg and
    key_ops may be there; they must not say that the key is for something else. Raises ``MalformedEvidence``.
    """
    value = decode_tolerant(data, limit=_MAX_CCA_KEY).value
    if not isinstance(value, dict):
        raise MalformedEnvelope("the realm key is not a COSE_Key")
    if type(value.get(_KTY)) is not int or value[_KTY] != _EC2:
        raise MalformedEnvelope("the realm key is not one of an elliptic curve with two coordinates")
    if type(value.get(_CRV)) is not int or value[_CRV] not in _CURVES:
        raise MalformedEnvelope("the realm key is on a curve that is not known")
    curve, algorithms = _CURVES[value[_CRV]]
    if set(value) - {_KTY, _KID, _ALG, _KEY_OPS, _CRV, _X, _Y}:
        raise MalformedEnvelope("the realm key has parameters that are not known")
    if _ALG in value and (type(value[_ALG]) is not int or value[_ALG] not in algorithms):
        raise MalformedEnvelope("the realm key is for another algorithm than its curve's")
    if _KEY_OPS in value and not (isinstance(value[_KEY_OPS], list) and _VERIFY in value[_KEY_OPS]):
        raise MalformedEnvelope("the realm key is not for verifying")
    return _coordinates(curve, value.get(_X), value.get(_Y))


def decode_point(data: bytes) -> EllipticCurvePublicKey:
    """The P-384 key of an uncompressed point (97 bytes), as tokens had it before they had COSE_Key."""
    if len(data) != _POINT_BYTES or data[0] != 0x04:
        raise MalformedEnvelope("the realm key is not an uncompressed point of P-384")
    return _point(SECP384R1(), data)


def _coordinates(curve: EllipticCurve, x: Any, y: Any) -> EllipticCurvePublicKey:
    size = (curve.key_size + 7) // 8
    if not isinstance(x, bytes) or len(x) != size:
        raise MalformedEnvelope(f"the realm key has no x coordinate of {size} bytes")
    if isinstance(y, bool):
        return _point(curve, bytes([0x03 if y else 0x02]) + x)
    if not isinstance(y, bytes) or len(y) != size:
        raise MalformedEnvelope(f"the realm key has no y coordinate of {size} bytes")
    return _key(curve, x, y)


def _key(curve: EllipticCurve, x: bytes, y: bytes) -> EllipticCurvePublicKey:
    numbers = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    try:
        return numbers.public_key()
    except ValueError:
        raise MalformedEnvelope("a key is not a point of its curve") from None


def _point(curve: EllipticCurve, data: bytes) -> EllipticCurvePublicKey:
    try:
        return EllipticCurvePublicKey.from_encoded_point(curve, data)
    except ValueError:
        raise MalformedEnvelope("a key is not a point of its curve") from None
