"""The owner's certificate, as a configuration holds it, and the value that stands for its key.

Reads what is needed by hand: the VMM process imports this file, and does without ``cryptography``. Nothing is
verified here; the measured bytes are the authority.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from vambrace.errors import ConfigError

_BEGIN = "-----BEGIN CERTIFICATE-----\n"
_END = "-----END CERTIFICATE-----\n"
_MAX_CERTIFICATE = 8192
# AlgorithmIdentifier of an EC key on P-256 (RFC 5480): id-ecPublicKey, prime256v1.
_P256 = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")


def personalization(spki: bytes) -> bytes:
    """The Realm personalization value: 64 bytes that stand for the owner with this SubjectPublicKeyInfo (DER)."""
    return hashlib.sha512(b"vambrace-rpv-1" + spki).digest()


def certificate_pem(der: bytes) -> str:
    """The one PEM spelling of ``der`` that a configuration may contain: 64 columns, LF."""
    text = base64.b64encode(der).decode()
    lines = (text[i : i + 64] for i in range(0, len(text), 64))
    return _BEGIN + "".join(line + "\n" for line in lines) + _END


def certificate_der(pem: str) -> bytes:
    """The DER bytes of one certificate in the spelling of ``certificate_pem``. Raises ``ConfigError``."""
    hint = "the owner's self-signed certificate in PEM form, with an ECDSA P-256 key"
    if not isinstance(pem, str) or len(pem) > _MAX_CERTIFICATE:
        raise ConfigError("owner: not a certificate", hint=hint)
    if not pem.startswith(_BEGIN) or not pem.endswith(_END):
        raise ConfigError("owner: not a certificate in PEM form", hint=hint)
    try:
        der = base64.b64decode(pem[len(_BEGIN) : -len(_END)].replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("owner: not a certificate in PEM form", hint=hint) from None
    if certificate_pem(der) != pem:
        raise ConfigError("owner: not a certificate in the usual PEM form", hint=hint)
    return der


def owner_public_key(pem: str) -> bytes:
    """SubjectPublicKeyInfo (DER) of the P-256 key in the certificate ``pem``. Raises ``ConfigError``.

    Walks only what leads to the key (RFC 5280, 4.1): nothing is verified, the measured bytes are the
    authority.
    """
    certificate = certificate_der(pem)
    body, end = _element(certificate, 0, len(certificate), 0x30)
    if end != len(certificate):
        raise ConfigError("owner: bytes follow the certificate", hint="give the certificate alone")
    position, end = _element(certificate, body, end, 0x30)
    if certificate[position : position + 1] == b"\xa0":
        _, position = _element(certificate, position, end, 0xA0)  # version
    for tag in (0x02, 0x30, 0x30, 0x30, 0x30):  # serial, algorithm, issuer, validity, subject
        _, position = _element(certificate, position, end, tag)
    content, stop = _element(certificate, position, end, 0x30)
    key = certificate[content:stop]
    # BIT STRING of 66 bytes: no unused bits, uncompressed point.
    if len(key) != len(_P256) + 68 or not key.startswith(_P256 + b"\x03\x42\x00\x04"):
        raise ConfigError("owner: the key is not ECDSA P-256", hint="make an EC key on P-256")
    return certificate[position:stop]


def _element(data: bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Start and end of the contents of the DER element at ``position``, which must have ``tag``."""
    broken = ConfigError("owner: the certificate is damaged", hint="'vambrace owner show' prints yours")
    if position + 2 > end or data[position] != tag:
        raise broken
    length = data[position + 1]
    start = position + 2
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 2 or start + count > end:
            raise broken
        length = int.from_bytes(data[start : start + count], "big")
        if length < (0x80 if count == 1 else 0x100):
            raise broken  # DER: the shortest form only
        start += count
    if start + length > end:
        raise broken
    return start, start + length
