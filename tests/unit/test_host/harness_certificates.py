"""Keys and certificates for the daemon's tests, made afresh in each run."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.owner import OwnerIdentity
from vambrace.suite import NIST, Suite

Key = ec.EllipticCurvePrivateKey

#: Another platform's.
OTHER_KEY = bytes.fromhex(
    "a4010220012158206b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "2258204fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


class Certificates:
    """One CA for servers and clients, a rogue CA, an owner, a stranger and a vendor, under ``directory``.

    The last three are of ``suite``.
    """

    def __init__(self, directory: Path, suite: Suite = NIST) -> None:
        self.directory = directory
        self.ca_key, self.ca = authority("ca")
        self.write("ca", self.ca, self.ca_key)
        self.vendor = VendorAuthority.create(suite=suite)
        self.vendor_root = directory / "vendor-root.pem"
        self.vendor_root.write_bytes(self.vendor.certificate_pem)
        rogue_key, rogue = authority("rogue")
        for name, issuer, key in (
            ("server", self.ca, self.ca_key),
            ("client", self.ca, self.ca_key),
            ("intruder", rogue, rogue_key),
        ):
            own = ec.generate_private_key(ec.SECP256R1())
            self.write(name, certificate(name, own.public_key(), issuer, key), own)
        self.owner = OwnerIdentity.create(self._directory("owner"), suite=suite)
        self.stranger = OwnerIdentity.create(self._directory("stranger"), suite=suite)

    def _directory(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        return path

    def write(self, name: str, cert: x509.Certificate, key: Key) -> None:
        (self.directory / f"{name}.pem").write_bytes(pem(cert))
        (self.directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def client_context(self, name: str | None = "client") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        if name:
            context.load_cert_chain(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        return context

    def endorse(self, platform_key: bytes) -> bytes:
        """A PEM chain for a COSE_Key, by the vendor."""
        return pem(self.vendor.certify(platform_key)) + self.vendor.certificate_pem


def pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def authority(name: str) -> tuple[Key, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, certificate(name, key.public_key(), None, key)


def certificate(
    name: str, key: ec.EllipticCurvePublicKey, issuer: x509.Certificate | None, signer: Key
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return builder.sign(signer, SHA256())
