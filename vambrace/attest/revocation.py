"""Certificate revocation lists (RFC 5280, section 5, the part that is needed).

A list counts for the certificates of its issuer if that issuer signed it and may sign lists. A list with a critical
extension that is not understood (an issuing distribution point, a delta) is refused: what it leaves out is not known.
What an out-of-date list revokes stays revoked; that something is *not* on it says little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from vambrace.attest.suites import certificate_key, revokes
from vambrace.errors import CertificateRevoked, ConfigError, RevocationUnknown

MAX_LIST: Final = 16 << 20
_PEM_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension)
_UNDERSTOOD: Final = {ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER}
_UNDERSTOOD_OF_ENTRY: Final = {CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE}
# A list that was made a moment ago, by a clock that is a little ahead, is a good one.
_CLOCK_SLACK: Final = timedelta(minutes=5)
_NO_LIST: Final = "there is no revocation list of the certificate's issuer"
_FRESH: Final = "get the vendor's present revocation list"


@dataclass(frozen=True)
class RevocationList:
    """One list, read and not verified: ``signed_by`` says whose it is. ``revoked``: serial number → reason."""

    crl: x509.CertificateRevocationList = field(compare=False)
    encoded: bytes = field(repr=False)  # DER
    issuer: x509.Name
    this_update: datetime
    next_update: datetime | None
    revoked: Mapping[int, str] = field(compare=False, repr=False)

    def signed_by(self, issuer: x509.Certificate) -> bool:
        return self.issuer == issuer.subject and _signed(self.encoded, issuer)

    def staleness(self, now: datetime, age: timedelta | None) -> str | None:
        """Why it says nothing about ``now``, or None."""
        if self.this_update > now + _CLOCK_SLACK:
            return f"the revocation list is of {self.this_update:%Y-%m-%d}, which is still to come"
        if self.next_update is None and age is None:
            return "the revocation list does not say when the next one comes"
        if self.next_update is not None and now > self.next_update:
            return f"the revocation list was to be renewed on {self.next_update:%Y-%m-%d}"
        if age is not None and now - self.this_update > age:
            return f"the revocation list is of {self.this_update:%Y-%m-%d}, older than {age.days} days"
        return None


def load_list(data: bytes) -> RevocationList:
    """A revocation list in PEM or DER form. Raises ``ConfigError``."""
    if len(data) > MAX_LIST:
        raise ConfigError(f"the revocation list is longer than {MAX_LIST} bytes")
    load = x509.load_pem_x509_crl if data.lstrip().startswith(_PEM_BEGIN) else x509.load_der_x509_crl
    try:
        crl = load(data)
        if not _understood(crl):
            raise ConfigError("the revocation list covers only a part of its issuer's certificates", hint=_FRESH)
        revoked = {entry.serial_number: _reason(entry) for entry in crl}
        encoded = crl.public_bytes(Encoding.DER)
        return RevocationList(crl, encoded, crl.issuer, crl.last_update_utc, crl.next_update_utc, revoked)
    except _UNREADABLE:
        raise ConfigError("the revocation list cannot be read", hint="a CRL of the vendor, PEM or DER") from None


class Revocation(NamedTuple):
    """The lists at hand, and what is demanded of them (``policy.Policy``)."""

    lists: tuple[RevocationList, ...] = ()
    required: bool = False
    age: timedelta | None = None

    def check(self, path: Sequence[x509.Certificate], now: datetime) -> str:
        """What is known of ``path``, whose last certificate is the root: one line.

        Raises ``CertificateRevoked``; where lists are required, ``RevocationUnknown``.
        """
        if not self.lists and not self.required:
            return f"revocation is not certain: {_NO_LIST}"
        doubts = [
            self._check_one(certificate, issuer, now)
            for certificate, issuer in zip(path, path[1:], strict=False)
        ]
        doubt = next((doubt for doubt in doubts if doubt), None)
        if doubt is None:
            return "not revoked"
        if self.required:
            raise RevocationUnknown(doubt, hint=_FRESH)
        return f"revocation is not certain: {doubt}"

    def _check_one(self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> str | None:
        theirs = [candidate for candidate in self.lists if candidate.signed_by(issuer)]
        for candidate in theirs:
            if (reason := candidate.revoked.get(certificate.serial_number)) is not None:
                raise CertificateRevoked(
                    f"the certificate of {_subject(certificate)} was revoked ({reason})",
                    hint="its vendor does not vouch for it any more",
                )
        if not theirs:
            return _NO_LIST
        newest = max(theirs, key=lambda candidate: candidate.this_update)
        return newest.staleness(now, self.age)


def _understood(crl: x509.CertificateRevocationList) -> bool:
    if any(extension.critical and extension.oid not in _UNDERSTOOD for extension in crl.extensions):
        return False
    return not any(
        extension.critical and extension.oid not in _UNDERSTOOD_OF_ENTRY
        for entry in crl
        for extension in entry.extensions
    )


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return str(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except x509.ExtensionNotFound:
        return "no reason given"


@lru_cache(maxsize=256)
def _signed(encoded: bytes, issuer: x509.Certificate) -> bool:
    crl = x509.load_der_x509_crl(encoded)
    try:
        may = issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
        return may and revokes(crl, certificate_key(issuer))
    except _UNREADABLE:
        return False


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string().encode("ascii", "backslashreplace").decode()[:160]
