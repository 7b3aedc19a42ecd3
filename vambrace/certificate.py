"""The owner's certificate, as a configuration holds it, and the value that stands for its key.

Reads what is needed by hand: the VMM process imports this file, and does without ``cryptography``. Nothing is
verified here; the measured bytes are the authority.
"""

from __future__ import annotations

import base64
import binascii

from vambrace.errors import ConfigError
from vambrace.suite import Suite, split_spki

_BEGIN = "-----BEGIN CERTIFICATE-----\n"
_END = "-----END CERTIFICATE-----\n"
_MAX_CERTIFICATE = 8192


def personalization(spki: bytes) -> bytes:
    """The Realm personalization value: 64 bytes that stand for the owner with this SubjectPublicKeyInfo (DER).

    Raises ``ConfigError`` for a key of no suite.
    """
    return _suite(spki).wide_digest(b"vambrace-rpv-1" + spki)


def certificate_pem(der: bytes) -> str:
    """The one PEM spelling of ``der`` that a configuration may contain: 64 columns, LF."""
    text = base64.b64encode(der).decode()
    lines = (text[i : i + 64] for i in range(0, len(text), 64))
    return _BEGIN + "".join(line + "\n" for line in lines) + _END


def certificate_der(pem: str) -> bytes:
    """The DER bytes of one certificate in the spelling of ``certificate_pem``. Raises ``ConfigError``."""
    hint = "the owner's self-signed certificate in PEM form, with a key of ECDSA P-256 or SM2"
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
    """SubjectPublicKeyInfo (DER) of a suite's key in the certificate ``pem``. Raises ``ConfigError``.

    Nothing is verified: the measured bytes are the authority.
    """
    spki = public_key_info(certificate_der(pem))
    _suite(spki)
    return spki


def owner_suite(pem: str) -> Suite:
    """The suite of the owner's key. Raises ``ConfigError`` as ``owner_public_key`` does."""
    return _suite(public_key_info(certificate_der(pem)))


def check_owner(owner: str, channel: str, suite: Suite) -> None:
    """The certificates (PEM) of the owner's key and, where TLS cannot use that, of the owner's key for TLS."""
    if owner_suite(owner) != suite:
        raise ConfigError(
            f"owner: the key is not {suite.signature}, as the {suite} has it",
            hint=f"'vambrace owner create --suite {suite.name}' makes one, or choose the suite of your key",
        )
    if bool(channel) == suite.tls:
        raise ConfigError(
            "channel: the owner's own key serves for TLS" if suite.tls else "channel: the owner has no key for TLS",
            hint=f"'vambrace owner show' prints what an image of the {suite} needs",
        )
    if channel and not owner_suite(channel).tls:
        raise ConfigError("channel: TLS cannot use this key", hint="'vambrace owner show' prints the right certificate")


def _suite(spki: bytes) -> Suite:
    try:
        return split_spki(spki)[0]
    except ValueError:
        raise ConfigError(
            "owner: the key is neither ECDSA P-256 nor SM2", hint="make a key with 'vambrace owner create'"
        ) from None


def public_key_info(certificate: bytes) -> bytes:
    """SubjectPublicKeyInfo (DER) of any key in a certificate (DER). Raises ``ConfigError``.

    Walks only what leads to the key (RFC 5280, 4.1).
    """
    body, end = _element(certificate, 0, len(certificate), 0x30)
    if end != len(certificate):
        raise ConfigError("owner: bytes follow the certificate", hint="give the certificate alone")
    position, end = _element(certificate, body, end, 0x30)
    if certificate[position : position + 1] == b"\xa0":
        _, position = _element(certificate, position, end, 0xA0)  # version
    for tag in (0x02, 0x30, 0x30, 0x30, 0x30):  # serial, algorithm, issuer, validity, subject
        _, position = _element(certificate, position, end, tag)
    _, stop = _element(certificate, position, end, 0x30)
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
