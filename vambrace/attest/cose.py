"""COSE_Sign1 and COSE_Key (RFC 9052, 9053): ECDSA on the NIST curves, and SM2; what is ours is of a suite, in
deterministic CBOR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384, SHA512

from vambrace.attest import suites
from vambrace.attest.cbor import Tag, decode_tolerant, encode, head
from vambrace.attest.keys import decode_key, encode_key
from vambrace.attest.suites import PrivateKey, PublicKey, suite_of
from vambrace.errors import MalformedCbor, MalformedEnvelope, SignatureInvalid
from vambrace.suite import BY_ALGORITHM, NIST, Suite

__all__ = ["ALGORITHMS", "ES256", "ES384", "ES512", "Sign1", "decode_key", "decode_sign1", "encode_key", "sign1"]

SIGN1_TAG: Final = 18
ALGORITHM: Final = 1
X5CHAIN: Final = 33  # RFC 9360
X5T: Final = 34
ES256: Final = -7
ES384: Final = -35
ES512: Final = -36

_BYTES: Final = 2  # the major type
_CONTEXT: Final = encode("Signature1")
_PARTS: Final = (bytes, dict, bytes, bytes)  # protected and unprotected header, payload, signature
_DETACHED: Final = (bytes, dict, type(None), bytes)
#: What our own messages and tokens may be signed with.
OF_SUITES: Final = frozenset(BY_ALGORITHM)
_MAX_SIGN1: Final = 64 << 10
_MAX_HEADER: Final = 16 << 10  # the header of a CoRIM has certificates
_SHORT_HEADER: Final = 64


@dataclass(frozen=True)
class Algorithm:
    """A signature algorithm of COSE, r and s of ``coordinate`` bytes each: a suite's, or ECDSA on another curve."""

    name: str
    coordinate: int
    suite: Suite | None = None
    curve: type[EllipticCurve] | None = None
    scheme: ECDSA | None = None

    def verify(self, key: PublicKey, signature: bytes, data: bytes) -> None:
        """Raises ``InvalidSignature``, and ``ValueError`` for a key that is not for this algorithm."""
        if self.suite is not None:
            if suite_of(key) is not self.suite:
                raise ValueError("a key of another suite")
            suites.verify(key, signature, data)
            return
        assert self.curve is not None and self.scheme is not None
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, self.curve):
            raise ValueError("a key on another curve")
        r, s = signature[: self.coordinate], signature[self.coordinate :]
        key.verify(encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")), data, self.scheme)


_P256: Final = Algorithm("ES256", 32, suite=NIST)
_P384: Final = Algorithm("ES384", 48, curve=SECP384R1, scheme=ECDSA(SHA384()))
_P521: Final = Algorithm("ES512", 66, curve=SECP521R1, scheme=ECDSA(SHA512()))
#: By COSE identifier, those of RFC 9864 (ESP256, ESP384, ESP512) too.
REGISTERED: Final = {ES256: _P256, ES384: _P384, ES512: _P521, -9: _P256, -51: _P384, -52: _P521}
#: The same, and the suites' that no registry knows (``vambrace/suite.py``).
ALGORITHMS: Final = {
    **{number: Algorithm(suite.signature, 32, suite=suite) for number, suite in BY_ALGORITHM.items()},
    **REGISTERED,
}


@dataclass(frozen=True)
class Sign1:
    """A decoded COSE_Sign1, not verified: ``verify`` says whether a key signed it.

    ``header`` are the protected parameters as they were signed, byte for byte; ``variation`` is what
    ``cbor.decode_tolerant`` says of the encoding.
    """

    protected: Mapping[int | str, Any]
    unprotected: Mapping[int | str, Any]
    payload: bytes
    signature: bytes
    header: bytes
    variation: str | None = None
    _signers: list[PublicKey] = field(default_factory=list, compare=False, repr=False)

    @property
    def algorithm(self) -> Algorithm:
        return ALGORITHMS[self.protected[ALGORITHM]]

    def verify(self, key: PublicKey, what: str) -> bytes:
        """The payload, if ``key`` signed it. Raises ``SignatureInvalid``, which names ``what``.

        What was proven stays so: the same message is not checked with the same key again.
        """
        if key in self._signers:
            return self.payload
        algorithm = self.algorithm
        try:
            algorithm.verify(key, self.signature, _to_be_signed(self.header, self.payload))
        except InvalidSignature:
            raise SignatureInvalid(f"the signature of the {what} does not verify") from None
        except ValueError:
            curve = suites.curve_name(key)
            raise SignatureInvalid(f"the {what} is signed with {algorithm.name}, its key is on {curve}") from None
        self._signers[:] = [key]
        return self.payload


def sign1(
    key: PrivateKey,
    payload: bytes,
    *,
    protected: Mapping[int | str, Any] | None = None,
    unprotected: Mapping[int | str, Any] | None = None,
) -> bytes:
    """``payload`` as a tagged COSE_Sign1 of ``key``, which is of a suite. ``protected`` is beside the algorithm."""
    header = encode({**(protected or {}), ALGORITHM: suite_of(key).algorithm})
    signature = suites.sign(key, _to_be_signed(header, payload))
    return encode(Tag(SIGN1_TAG, [header, dict(unprotected or {}), payload, signature]))


def decode_sign1(
    data: bytes,
    what: str,
    *,
    protected: frozenset[int] = frozenset(),
    unprotected: frozenset[int] = frozenset(),
) -> Sign1:
    """Read a tagged COSE_Sign1 of any suite in deterministic CBOR, whoever wrote it.

    ``protected`` (beside the algorithm) and ``unprotected`` are the header parameters that may be there.
    Raises ``MalformedCbor`` and ``MalformedEnvelope``, which names ``what``.
    """
    message = decode_sign1_tolerant(data, what)
    if message.variation is not None:
        raise MalformedCbor(message.variation)
    check_headers(message, what, OF_SUITES, protected, unprotected)
    return message


def decode_sign1_tolerant(data: bytes, what: str) -> Sign1:
    """Read any tagged COSE_Sign1 of a known algorithm (``ALGORITHMS``), in the encodings of ``cbor.decode_tolerant``.

    Which algorithms and headers are accepted is for ``check_headers``. Raises as ``decode_sign1``.
    """
    value, variation = decode_tolerant(data, limit=_MAX_SIGN1)
    if not isinstance(value, Tag) or value.number != SIGN1_TAG:
        raise MalformedEnvelope(f"the {what} is not tagged as a COSE_Sign1")
    parts = value.value if isinstance(value.value, list) else []
    kinds = tuple(map(type, parts))
    if kinds == _DETACHED:
        raise MalformedEnvelope(f"the {what} has its payload elsewhere")
    if kinds != _PARTS:
        raise MalformedEnvelope(f"the {what} is not a COSE_Sign1")
    header, loose, payload, signature = parts
    parameters, header_variation = _parameters(header)
    if parameters is None:
        raise MalformedEnvelope(f"the protected header of the {what} is not a map")
    algorithm = ALGORITHMS.get(_algorithm(parameters, what))
    if algorithm is None:
        raise MalformedEnvelope(f"the {what} is signed with an algorithm that is not known")
    if len(signature) != 2 * algorithm.coordinate:
        raise MalformedEnvelope(f"the signature of the {what} has the wrong length")
    return Sign1(parameters, loose, payload, signature, header, variation or header_variation)


def check_headers(
    message: Sign1,
    what: str,
    algorithms: frozenset[int],
    protected: frozenset[int],
    unprotected: frozenset[int],
) -> None:
    """Raises ``MalformedEnvelope`` for an algorithm or a header parameter that is not among these."""
    if message.protected[ALGORITHM] not in algorithms:
        names = sorted({ALGORITHMS[algorithm].name for algorithm in algorithms})
        raise MalformedEnvelope(f"the {what} is not signed with {' or '.join(names)}")
    if (unknown := unknown_header(message, protected, unprotected)) is not None:
        raise MalformedEnvelope(f"the {what} has a header parameter that is not known: {unknown[:32]!a}")


def unknown_header(message: Sign1, protected: frozenset[int], unprotected: frozenset[int]) -> str | None:
    """The first parameter that is not one of these, and not the algorithm."""
    unknown = (set(message.protected) - protected - {ALGORITHM}) | (set(message.unprotected) - unprotected)
    return min((str(parameter) for parameter in unknown), default=None)


def _parameters(header: bytes) -> tuple[Mapping[int | str, Any] | None, str | None]:
    return _few_parameters(header) if len(header) <= _SHORT_HEADER else _few_parameters.__wrapped__(header)


@lru_cache(maxsize=256)  # it mostly names an algorithm, and there are few
def _few_parameters(header: bytes) -> tuple[Mapping[int | str, Any] | None, str | None]:
    value, variation = decode_tolerant(header, limit=_MAX_HEADER) if header else ({}, None)
    return MappingProxyType(value) if isinstance(value, dict) else None, variation


def _algorithm(parameters: Mapping[int | str, Any], what: str) -> int:
    algorithm = parameters.get(ALGORITHM)
    if type(algorithm) is not int:
        raise MalformedEnvelope(f"the {what} does not say in its protected header how it is signed")
    return algorithm


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure (RFC 9052, 4.4) with no external data: an array of four."""
    ours = head(_BYTES, len(protected)) + protected
    return b"\x84" + _CONTEXT + ours + b"\x40" + head(_BYTES, len(payload)) + payload
