"""Keys of every suite (``vambrace/suite.py``) under one face: made, read, written, and what they sign.

The one module that knows who computes a suite's signatures: ``cryptography`` ECDSA on P-256, libcrypto SM2. Others ask
``suite_of(key)`` for names and numbers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from vambrace.attest.sm2 import Sm2PrivateKey, Sm2PublicKey
from vambrace.certificate import public_key_info
from vambrace.errors import ConfigError
from vambrace.suite import NIST, SM, Suite, split_spki

PublicKey = EllipticCurvePublicKey | Sm2PublicKey
PrivateKey = EllipticCurvePrivateKey | Sm2PrivateKey

SIGNATURE_BYTES: Final = 64
_NUMBER: Final = 32
_PEM = re.compile(rb"\s*-----BEGIN PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+?)-----END PRIVATE KEY-----\s*")
# AlgorithmIdentifier of SM2 with SM3 (1.2.156.10197.1.501; GM/T 0006).
_SM2_WITH_SM3: Final = bytes.fromhex("300a06082a811ccf55018375")
# Where it stands in what is signed: behind a version and a serial number of at most 20 bytes.
_BEGINNING: Final = 64


def suite_of(key: PublicKey | PrivateKey) -> Suite:
    """Raises ``ValueError`` for a key on another curve than P-256 and SM2's."""
    if isinstance(key, Sm2PublicKey | Sm2PrivateKey):
        return SM
    if not isinstance(key.curve, SECP256R1):
        raise ValueError("the key is not on P-256")
    return NIST


def curve_name(key: PublicKey) -> str:
    """For people."""
    return key.curve.name if isinstance(key, EllipticCurvePublicKey) else SM.signature


def generate(suite: Suite) -> PrivateKey:
    """A fresh key. Raises ``ConfigError`` where this machine cannot."""
    return _MAKERS[suite]()


def generate_p256() -> EllipticCurvePrivateKey:
    """A fresh key for what is of no suite but the usual one."""
    return generate_private_key(SECP256R1())


_MAKERS: Final[dict[Suite, Callable[[], PrivateKey]]] = {NIST: generate_p256, SM: Sm2PrivateKey.generate}


# Forms


def spki(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    if isinstance(key, Sm2PublicKey):
        return key.spki()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load_public(data: bytes) -> PublicKey:
    """The key of a SubjectPublicKeyInfo (DER). Raises ``ValueError``: no suite's, or a point off its curve."""
    suite, _ = split_spki(data)
    if suite == SM:
        return Sm2PublicKey.load(data)
    key = load_der_public_key(data)
    assert isinstance(key, EllipticCurvePublicKey)
    return key


def point(key: PublicKey) -> bytes:
    """x ‖ y, 64 bytes."""
    return split_spki(spki(key))[1]


def load_private(pem: bytes) -> PrivateKey:
    """The key of an unencrypted private key in PEM form, of SM2 in PKCS #8. Raises ``ValueError``."""
    if match := _PEM.fullmatch(pem):
        try:
            der = base64.b64decode(b"".join(match[1].split()), validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
        if SM.key_algorithm in der[:_BEGINNING]:
            return Sm2PrivateKey.load(der)
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError("the key is encrypted") from None
    except UnsupportedAlgorithm:
        raise ValueError("not a key of any suite") from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("not a key on P-256 or of SM2")
    return key


def load_p256(pem: bytes) -> EllipticCurvePrivateKey:
    """As ``load_private``, for what is of no suite but the usual one."""
    key = load_private(pem)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("not a key on P-256")
    return key


def private_pem(key: PrivateKey) -> bytes:
    """PKCS #8 in PEM form, not encrypted."""
    if not isinstance(key, Sm2PrivateKey):
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    text = base64.encodebytes(key.pkcs8()).replace(b"\n", b"")
    lines = b"".join(text[i : i + 64] + b"\n" for i in range(0, len(text), 64))
    return b"-----BEGIN PRIVATE KEY-----\n" + lines + b"-----END PRIVATE KEY-----\n"


# Signatures


def sign(key: PrivateKey, data: bytes) -> bytes:
    """r ‖ s, 64 bytes. Raises ``ValueError`` for a key of no suite."""
    suite_of(key)
    der = key.sign(data) if isinstance(key, Sm2PrivateKey) else key.sign(data, ECDSA(SHA256()))
    r, s = decode_dss_signature(der)
    return r.to_bytes(_NUMBER, "big") + s.to_bytes(_NUMBER, "big")


def verify(key: PublicKey, signature: bytes, data: bytes) -> None:
    """Raises ``InvalidSignature`` unless ``signature`` (r ‖ s, 64 bytes) is the key's over ``data``."""
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidSignature
    r, s = (int.from_bytes(half, "big") for half in (signature[:_NUMBER], signature[_NUMBER:]))
    _verify(key, encode_dss_signature(r, s), data)


def _verify(key: PublicKey, der: bytes, data: bytes) -> None:
    if not isinstance(key, Sm2PublicKey):
        key.verify(der, data, ECDSA(SHA256()))
    elif not key.verifies(der, data):
        raise InvalidSignature


# Certificates


def certificate_key(certificate: x509.Certificate) -> PublicKey:
    """The key that is certified, on any curve. Raises ``ValueError``, ``UnsupportedAlgorithm``: another kind."""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        try:
            return load_public(public_key_info(certificate.public_bytes(Encoding.DER)))
        except ConfigError:
            raise ValueError("not a certificate") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("not a key on a curve")
    return key


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` signed ``certificate``, and is named in it: with SM2, or ECDSA on P-256 or P-384."""
    try:
        key = certificate_key(issuer)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(key, Sm2PublicKey):
        whole, body = certificate.public_bytes(Encoding.DER), certificate.tbs_certificate_bytes
        return certificate.issuer == issuer.subject and _signed(whole, body, certificate.signature, key)
    if not isinstance(key.curve, SECP256R1 | SECP384R1):
        return False
    try:
        if not isinstance(certificate.signature_hash_algorithm, SHA256 | SHA384):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def revokes(crl: x509.CertificateRevocationList, issuer: PublicKey) -> bool:
    """Whether ``issuer`` signed ``crl``."""
    if isinstance(issuer, Sm2PublicKey):
        return _signed(crl.public_bytes(Encoding.DER), crl.tbs_certlist_bytes, crl.signature, issuer)
    try:
        return isinstance(crl.signature_hash_algorithm, SHA256 | SHA384) and crl.is_signature_valid(issuer)
    except UnsupportedAlgorithm:
        return False


def _signed(whole: bytes, body: bytes, signature: bytes, issuer: Sm2PublicKey) -> bool:
    """X.509's SIGNED (RFC 5280, 4.1.1): what names the algorithm is outside of what is signed, and inside once more."""
    named = whole.endswith(body + _SM2_WITH_SM3 + _element(0x03, b"\0" + signature))
    return named and _SM2_WITH_SM3 in body[:_BEGINNING] and issuer.verifies(signature, body)


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    return bytes([tag, 0x81, length]) + content


def subject_key_identifier(key: PublicKey) -> x509.SubjectKeyIdentifier:
    """The usual one (RFC 5280, 4.2.1.2): SHA-1 of the point. A name, on which nothing rests."""
    return x509.SubjectKeyIdentifier(hashlib.sha1(b"\x04" + point(key), usedforsecurity=False).digest())


def unfinished_certificate(subject: x509.Name, issuer: x509.Name, key: PublicKey) -> x509.CertificateBuilder:
    """A certificate for ``key``, to be finished and signed with ``sign_certificate``."""
    # The builder takes no key that its library has not: another one keeps the place.
    placed = generate_p256().public_key() if isinstance(key, Sm2PublicKey) else key
    builder = x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=placed)
    return builder.add_extension(subject_key_identifier(key), critical=False)


def sign_certificate(builder: x509.CertificateBuilder, key: PublicKey, issuer: PrivateKey) -> x509.Certificate:
    """``builder``'s certificate for ``key``, which is of the same suite as its ``issuer``. Raises ``ValueError``."""
    if suite_of(key) != suite_of(issuer):
        raise ValueError("a key is certified by one of its own suite")
    if not isinstance(issuer, Sm2PrivateKey):
        return builder.sign(issuer, SHA256())
    assert isinstance(key, Sm2PublicKey)
    template = builder.sign(generate_p256(), SHA256()).public_bytes(Encoding.DER)
    return x509.load_der_x509_certificate(issuer.sign_certificate(template, key))


def sign_revocations(
    builder: x509.CertificateRevocationListBuilder, issuer: PrivateKey
) -> x509.CertificateRevocationList:
    """``builder``'s list, signed."""
    if not isinstance(issuer, Sm2PrivateKey):
        return builder.sign(issuer, SHA256())
    template = builder.sign(generate_p256(), SHA256()).public_bytes(Encoding.DER)
    return x509.load_der_x509_crl(issuer.sign_revocations(template))
