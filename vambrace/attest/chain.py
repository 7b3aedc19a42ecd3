"""X.509 chains of the vendor (RFC 5280, the part that is needed), and their two purposes.

A key that the vendor certified for one purpose is refused for the other: a platform must not be able to
sign the reference values that it is measured against. The purposes are extended key usages in the arc
2.25 (X.667: derived from a UUID, no registration).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import BasicConstraints, ExtendedKeyUsage, KeyUsage, ObjectIdentifier
from cryptography.x509.oid import ExtensionOID

from vambrace.attest.keys import encode_key
from vambrace.attest.revocation import Revocation
from vambrace.attest.suites import PublicKey, certificate_key, issued, suite_of
from vambrace.errors import CertificateExpired, ConfigError, MalformedEvidence, UnknownRoot

MAX_CHAIN: Final = 4
PLATFORM_PURPOSE: Final = ObjectIdentifier("2.25.282014517566326158880184209957020930709")
REFERENCES_PURPOSE: Final = ObjectIdentifier("2.25.334306216682512938550427885001358262317")

# What the X.509 parser raises, at once or when a field is read, for bytes that an enemy wrote.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_UNDERSTOOD: Final = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}


def load_roots(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, such as ``vendor-root.pem``. Raises ``ConfigError``."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except UNREADABLE:
        raise ConfigError("the root is not a certificate in PEM form", hint="vendor-root.pem") from None


@dataclass(frozen=True)
class VerifiedPath:
    """What a chain proves whenever it is looked at. ``certificates`` lead from the leaf to a root."""

    certificates: tuple[x509.Certificate, ...]
    key: PublicKey  # the leaf's
    cose_key: bytes  # the same, encoded
    subject: str  # the leaf's
    start: datetime  # from when and until when all of them are valid
    end: datetime


class VerifiedChain(NamedTuple):
    """``path`` leads from the leaf to a root; ``revocation`` says what is known of that."""

    path: VerifiedPath
    revocation: str

    @property
    def key(self) -> PublicKey:
        return self.path.key


def verify_chain(
    chain: Sequence[bytes],
    roots: Sequence[x509.Certificate],
    purpose: ObjectIdentifier,
    now: datetime,
    *,
    revocation: Revocation | None = None,
) -> VerifiedChain:
    """``chain`` (DER, leaf first) verified: it leads to one of ``roots``; its leaf, a suite's key, is for ``purpose``.

    Raises ``MalformedEvidence``, ``UnknownRoot``, ``CertificateExpired``, ``CertificateRevoked``,
    ``RevocationUnknown``. ``now`` has a time zone.
    """
    if not chain:
        raise UnknownRoot("there is no endorsement", hint="the platform must be certified by its vendor")
    if len(chain) > MAX_CHAIN:
        raise MalformedEvidence(f"a chain has more than {MAX_CHAIN} certificates")
    path = _verified_path(tuple(chain), tuple(roots), purpose)
    if not path.start <= now <= path.end:
        for certificate in path.certificates:
            _check_validity(certificate, now)
    return VerifiedChain(path, (revocation or Revocation()).check(path.certificates, now))


# A platform shows the same chain with each of its tokens. Only what does not change is kept: neither validity nor
# revocation. What was refused is not kept, so that nobody can push out what was accepted with rubbish.
@lru_cache(maxsize=1024)
def _verified_path(
    chain: tuple[bytes, ...], roots: tuple[x509.Certificate, ...], purpose: ObjectIdentifier
) -> VerifiedPath:
    """The path to a root and the leaf's key: everything that time does not change."""
    try:
        path = _complete([_load(certificate) for certificate in chain], roots)
        for above, certificate in enumerate(path[1:]):
            _check_authority(certificate, intermediates=above)
        key = _check_leaf(path[0], purpose)
        return VerifiedPath(
            certificates=tuple(path),
            key=key,
            cose_key=encode_key(key),
            subject=path[0].subject.rfc4514_string(),
            start=max(certificate.not_valid_before_utc for certificate in path),
            end=min(certificate.not_valid_after_utc for certificate in path),
        )
    except UNREADABLE:
        raise MalformedEvidence("a certificate cannot be read") from None
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        raise UnknownRoot("a certificate lacks a needed extension, or has one twice") from None


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    # The parser lets the outermost BIT STRING, which no signature covers, say that its last bits are unused.
    if certificate.public_bytes(Encoding.DER) != der or not der.endswith(b"\0" + certificate.signature):
        raise ValueError("not the one encoding of a certificate")
    return certificate


def _complete(path: list[x509.Certificate], roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """``path`` with each certificate issued by the next one, and a root at its end."""
    for certificate, issuer in zip(path, path[1:], strict=False):
        if not issued(certificate, issuer):
            raise UnknownRoot("the endorsement is not a chain: a certificate does not sign the one before it")
    if len(path) > 1 and path[-1] in roots:
        return path
    for root in roots:
        if issued(path[-1], root):
            return [*path, root]
    if not roots:
        raise UnknownRoot("no vendor's root is given", hint="the vendor publishes it: vendor-root.pem")
    raise UnknownRoot(
        "the endorsement does not lead to the given root",
        hint="another vendor's platform, or another vendor-root.pem",
    )


def _check_authority(certificate: x509.Certificate, intermediates: int) -> None:
    _check_critical(certificate)
    constraints = certificate.extensions.get_extension_for_class(BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(KeyUsage).value
    if not constraints.ca or not usage.key_cert_sign:
        raise UnknownRoot("a certificate was signed with a key that may sign none")
    if constraints.path_length is not None and intermediates > constraints.path_length:
        raise UnknownRoot("the endorsement is longer than one of its authorities allows")


def _check_leaf(certificate: x509.Certificate, purpose: ObjectIdentifier) -> PublicKey:
    _check_critical(certificate)
    constraints = certificate.extensions.get_extension_for_class(BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(KeyUsage).value
    purposes = certificate.extensions.get_extension_for_class(ExtendedKeyUsage).value
    if constraints.ca or not usage.digital_signature or list(purposes) != [purpose]:
        raise UnknownRoot("the vendor certified this key for another purpose")
    key = certificate_key(certificate)
    try:
        suite_of(key)
    except ValueError:
        raise UnknownRoot("the vendor certified a key that is neither on P-256 nor SM2's") from None
    return key


def _check_critical(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise UnknownRoot("a certificate has a critical extension that is not understood")


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now <= end:
        when = "expired on" if now > end else "is not valid before"
        raise CertificateExpired(
            f"a certificate of the endorsement {when} {(end if now > end else start).date()}",
            hint="check this machine's clock, then ask the vendor for a new endorsement",
        )
