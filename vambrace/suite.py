"""The suites of cryptography, one of which a host and an image have: what hashes, signs and encrypts.

A suite is one object. Whoever hashes, signs or encrypts asks it, or the key that belongs to it; nobody asks which of
the suites it is. ``NIST`` is what is had without a word; ``SM`` is the Chinese national suite: SM2 (GB/T 32918.2), SM3
(GB/T 32905) and SM4 (GB/T 32907) in GCM.

No registry has identifiers of COSE for SM2. Ours are from the ranges for private use (RFC 9053, 11.1 and 11.3):
-70100 is SM2 with SM3, r ‖ s as in ECDSA, signer's identity "1234567812345678" (GB/T 35276, as in certificates);
-70101 is the curve sm2p256v1 of a key of type EC2.

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import hashlib
from typing import Final

from vambrace.errors import ConfigError
from vambrace.record import Record

DIGEST_BYTES: Final = 32
WIDE_BYTES: Final = 64
#: AlgorithmIdentifier (RFC 5480) of id-ecPublicKey on prime256v1, and on sm2p256v1 (1.2.156.10197.1.301).
_P256: Final = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
_SM2: Final = bytes.fromhex("301306072a8648ce3d020106082a811ccf5501822d")
#: BIT STRING of an uncompressed point on a curve of 256 bits.
_POINT: Final = bytes.fromhex("03420004")
POINT_BYTES: Final = 64


class Suite(Record):
    """``hash`` and ``cipher`` are named as configurations and claims name them, ``digests`` as hashlib does: that of
    32 bytes, and that from which values of 64 bytes are made."""

    name: str
    title: str
    hash: str
    digests: tuple[str, str]
    cipher: str
    #: For people: what its keys are.
    signature: str
    #: COSE's numbers of the signature and of the keys' curve.
    algorithm: int
    curve: int
    #: AlgorithmIdentifier of its keys, DER.
    key_algorithm: bytes
    #: Whether TLS 1.3 takes its keys in the libraries that there are. Where not, an owner has one more key for TLS.
    tls: bool
    #: What the trusted application calls it (firmware/ta/protocol.h).
    number: int

    def __str__(self) -> str:
        return self.title

    def digest(self, data: bytes) -> bytes:
        """32 bytes. Raises ``ConfigError``: this Python's OpenSSL has not the hash."""
        return self._digest(self.digests[0], data)

    def wide_digest(self, data: bytes) -> bytes:
        """64 bytes, zeros at the end where the hash is shorter. Raises ``ConfigError`` as ``digest`` does."""
        return self._digest(self.digests[1], data).ljust(WIDE_BYTES, b"\0")

    def _digest(self, algorithm: str, data: bytes) -> bytes:
        make = getattr(hashlib, algorithm, None)  # quicker than by its name, where there is one
        if make is not None:
            return bytes(make(data).digest())
        try:
            return hashlib.new(algorithm, data).digest()
        except ValueError:
            raise ConfigError(
                f"hash: {self.hash} is not to be had here", hint="it needs a Python whose OpenSSL has it"
            ) from None

    def encode_spki(self, point: bytes) -> bytes:
        """SubjectPublicKeyInfo (DER) of the key at ``point`` (x ‖ y, 64 bytes)."""
        if len(point) != POINT_BYTES:
            raise ValueError(f"a point has {POINT_BYTES} bytes")
        content = self.key_algorithm + _POINT + point
        return bytes([0x30, len(content)]) + content


NIST: Final = Suite(
    name="nist",
    title="NIST suite",
    hash="sha-256",
    digests=("sha256", "sha512"),
    cipher="aes-256-gcm",
    signature="ECDSA P-256",
    algorithm=-7,
    curve=1,
    key_algorithm=_P256,
    tls=True,
    number=1,
)
SM: Final = Suite(
    name="sm",
    title="SM suite",
    hash="sm3",
    digests=("sm3", "sm3"),
    cipher="sm4-gcm",
    signature="SM2",
    algorithm=-70100,
    curve=-70101,
    key_algorithm=_SM2,
    tls=False,
    number=2,
)

SUITES: Final = {suite.name: suite for suite in (NIST, SM)}
BY_HASH: Final = {suite.hash: suite for suite in SUITES.values()}
BY_ALGORITHM: Final = {suite.algorithm: suite for suite in SUITES.values()}
BY_CURVE: Final = {suite.curve: suite for suite in SUITES.values()}


def suite_named(name: str) -> Suite:
    """Raises ``ConfigError``."""
    try:
        return SUITES[name]
    except KeyError:
        raise ConfigError(f"suite: {str(name)[:40]!r} is not known", hint="one of " + ", ".join(SUITES)) from None


def split_spki(spki: bytes) -> tuple[Suite, bytes]:
    """Whose key a SubjectPublicKeyInfo (DER) is, and its point (x ‖ y, 64 bytes), which may lie off the curve.

    Raises ``ValueError``: no suite's, or not the one encoding.
    """
    point = spki[-POINT_BYTES:]
    for suite in SUITES.values():
        if len(point) == POINT_BYTES and spki == suite.encode_spki(point):
            return suite, point
    raise ValueError("not a key of any suite")
