"""The vendor's authority: it certifies platform keys at the factory, renews and revokes that, and certifies signers of
reference values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from vambrace.attest.chain import PLATFORM_PURPOSE, REFERENCES_PURPOSE, verify_chain
from vambrace.attest.claims import UEID_RANDOM
from vambrace.attest.cose import decode_key, encode_key
from vambrace.attest.revocation import RevocationList, load_list
from vambrace.attest.suites import (
    PrivateKey,
    PublicKey,
    certificate_key,
    generate,
    generate_p256,
    load_p256,
    load_private,
    private_pem,
    sign_certificate,
    sign_revocations,
    subject_key_identifier,
    suite_of,
    unfinished_certificate,
)
from vambrace.errors import ConfigError, UsageError
from vambrace.files import write_whole
from vambrace.suite import NIST, Suite

ROOT_DAYS: Final = 3653
LEAF_DAYS: Final = 1826
LIST_DAYS: Final = 30
_BOTH: Final = "restore both from a backup; without them the vendor must begin anew"
# A certificate made now must be valid for a verifier whose clock is a little behind.
_CLOCK_SLACK: Final = timedelta(hours=1)


def platform_instance_id(cose_key: bytes, suite: Suite = NIST) -> bytes:
    """The UEID of the platform whose attestation key is ``cose_key``: 0x01 and its suite's hash of it, 33 bytes."""
    return bytes([UEID_RANDOM]) + suite.digest(cose_key)


@dataclass(frozen=True)
class VendorAuthority:
    """A root key and its self-signed certificate."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def create(
        cls, name: str = "vambrace platform vendor", *, suite: Suite = NIST, now: datetime | None = None
    ) -> VendorAuthority:
        key = generate(suite)
        subject = certificate_name(name)
        start = (now or datetime.now(UTC)) - _CLOCK_SLACK
        builder = certificate_builder(subject, subject, key.public_key(), start, ROOT_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        builder = builder.add_extension(key_usage(sign_certificates=True), critical=True)
        return cls(sign_certificate(builder, key.public_key(), key), key)

    @classmethod
    def load(cls, key: Path, certificate: Path) -> VendorAuthority:
        """Read both PEM files. Raises ``ConfigError``."""
        try:
            loaded = load_private(key.read_bytes())
            authority = cls(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)
        except (OSError, ValueError):
            raise ConfigError(
                f"the vendor's authority cannot be read from {key} and {certificate}", hint=_BOTH
            ) from None
        if certificate_key(authority.certificate) != loaded.public_key():
            raise ConfigError(f"{key} is not the key of {certificate}", hint=_BOTH)
        return authority

    def save(self, key: Path, certificate: Path) -> None:
        """Write both as PEM, the key readable by its owner only; neither may exist."""
        write_private_key(key, self.key)
        write_whole(certificate, self.certificate_pem, mode=0o644)

    @property
    def certificate_pem(self) -> bytes:
        """``vendor-root.pem``."""
        return self.certificate.public_bytes(Encoding.PEM)

    def certify(
        self, cose_key: bytes, *, now: datetime | None = None, days: int = LEAF_DAYS
    ) -> x509.Certificate:
        """Endorse a platform attestation key (COSE_Key encoding).

        The subject's common name is the platform's instance id without its type byte, in hex: with it
        the name would pass the 64 characters that X.520 allows. Raises ``MalformedEvidence``, ``ConfigError`` for
        a key of another suite than the authority's.
        """
        key = decode_key(cose_key)
        name = platform_instance_id(cose_key, suite_of(key))[1:].hex()
        if suite_of(key) != suite_of(self.key):
            raise ConfigError(
                f"the platform's key is of the {suite_of(key)}, the vendor's of the {suite_of(self.key)}",
                hint="certify it with the vendor's authority of its suite",
            )
        return self._leaf(name, key, PLATFORM_PURPOSE, now, days)

    def renew(
        self, certificate: x509.Certificate, *, now: datetime | None = None, days: int = LEAF_DAYS
    ) -> x509.Certificate:
        """Endorse the platform key of ``certificate`` once more; what is valid already may be renewed early.

        Raises ``UnknownRoot`` for what this authority has not certified as a platform. Whether it was revoked since is
        the caller's to know: a revoked key must not be renewed.
        """
        then = certificate.not_valid_before_utc
        chain = [certificate.public_bytes(Encoding.DER)]
        verified = verify_chain(chain, [self.certificate], PLATFORM_PURPOSE, then)
        return self.certify(encode_key(verified.key), now=now, days=days)

    def revocation_list(
        self,
        previous: bytes | None = None,
        *,
        revoke: Mapping[int, x509.ReasonFlags] | None = None,
        now: datetime | None = None,
        days: int = LIST_DAYS,
    ) -> bytes:
        """``vendor.crl`` (PEM): all that ``previous`` revokes, and the serial numbers in ``revoke``.

        It is to be renewed within ``days``, also when nothing is revoked. Raises ``ConfigError`` for a previous list
        that is not this authority's: what it revoked would be forgotten.
        """
        start = now or datetime.now(UTC)
        before = self._previous(previous) if previous is not None else None
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject)
        builder = builder.last_update(start).next_update(start + timedelta(days=days))
        for entry in before.crl if before else ():
            builder = builder.add_revoked_certificate(entry)
        for serial, reason in (revoke or {}).items():
            if before is None or serial not in before.revoked:
                builder = builder.add_revoked_certificate(_revoked(serial, reason, start))
        builder = builder.add_extension(self._identifier(), critical=False)
        builder = builder.add_extension(x509.CRLNumber(_next_number(before)), critical=False)
        return sign_revocations(builder, self.key).public_bytes(Encoding.PEM)

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        of_key = subject_key_identifier(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(of_key)

    def _previous(self, data: bytes) -> RevocationList:
        before = load_list(data)
        if not before.signed_by(self.certificate):
            raise ConfigError("the present revocation list is another authority's", hint="give the vendor's own")
        return before

    def reference_signer(
        self, *, now: datetime | None = None, days: int = LEAF_DAYS
    ) -> tuple[PrivateKey, x509.Certificate]:
        """A fresh key that may sign reference values; forget it after use."""
        key = generate(suite_of(self.key))
        return key, self._leaf("reference values", key.public_key(), REFERENCES_PURPOSE, now, days)

    def _leaf(
        self,
        name: str,
        key: PublicKey,
        purpose: x509.ObjectIdentifier,
        now: datetime | None,
        days: int,
    ) -> x509.Certificate:
        start = (now or datetime.now(UTC)) - _CLOCK_SLACK
        builder = certificate_builder(certificate_name(name), self.certificate.subject, key, start, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(key_usage(sign_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        return sign_certificate(builder.add_extension(self._identifier(), critical=False), key, self.key)


def _next_number(before: RevocationList | None) -> int:
    if before is None:
        return 1
    return before.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1


def _revoked(serial: int, reason: x509.ReasonFlags, start: datetime) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=start)
    return builder.add_extension(x509.CRLReason(reason), critical=False).build()


def write_private_key(path: Path, key: PrivateKey) -> None:
    """Write ``key`` as PEM (PKCS #8), mode 0600 from its first moment. Raises ``ConfigError``."""
    pem = private_pem(key)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, pem, replace=False)
    except FileExistsError:
        raise ConfigError(f"{path} is there already", hint="keys are never overwritten") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", hint="make room there, or choose another folder"
        ) from error


def load_or_make_key(path: Path) -> EllipticCurvePrivateKey:
    """The P-256 key (PEM) in ``path``, or a fresh one that is written there. Raises ``ConfigError``.

    For what JOSE signs, which knows no other suite.
    """
    try:
        return load_p256(path.read_bytes())
    except FileNotFoundError:
        key = generate_p256()
        write_private_key(path, key)
        return key
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    except ValueError:
        raise ConfigError(f"{path} is not a private key on P-256", hint="PEM, not encrypted") from None


# Also for the owner's certificate.


def certificate_name(common_name: str) -> x509.Name:
    """Raises ``UsageError`` for a name that X.509 has no room for."""
    if not 1 <= len(common_name) <= 64:
        raise UsageError(f"a certificate's name has 1 to 64 characters, not {len(common_name)}", hint="choose another")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, start: datetime, days: int
) -> x509.CertificateBuilder:
    builder = unfinished_certificate(subject, issuer, key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(start).not_valid_after(start + timedelta(days=days))


def key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
