"""What a server gets once, before its first start: the API's credentials, the vendor's authority, the state disk."""

from __future__ import annotations

import ipaddress
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vambrace.attest.endorsement import VendorAuthority, key_usage
from vambrace.attest.owner import KEY_FILE, OwnerIdentity
from vambrace.debian import tools
from vambrace.emulator.vendor import Vendor
from vambrace.files import write_whole
from vambrace.suite import NIST, Suite

STATE_BYTES = 4 << 30
_DAYS = 825


class Credentials:
    """TLS credentials of one server's API: an authority of its own, the server's part and one client's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.pem"
        self.client_certificate = directory / "client.pem"
        self.client_key = directory / "client.key"
        self.server = directory / "server"

    def exist(self) -> bool:
        """All of them: what is written last is there."""
        return self._clients.exists()

    @property
    def _clients(self) -> Path:
        return self.server / "clients.pem"

    def create(self) -> None:
        """Make all of it. The authority's key is forgotten: nobody can be added later without a reset."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.server.mkdir(exist_ok=True, mode=0o700)
        ca_key = ec.generate_private_key(ec.SECP256R1())
        name = _name("vambrace host API")
        ca = _certificate(name, name, ca_key.public_key(), ca_key, authority=True)
        write_whole(self.ca, _pem(ca))
        for path_key, path_certificate, common, usage in (
            (self.client_key, self.client_certificate, "operator", ExtendedKeyUsageOID.CLIENT_AUTH),
            (
                self.server / "server.key",
                self.server / "server.pem",
                "localhost",
                ExtendedKeyUsageOID.SERVER_AUTH,
            ),
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _certificate(_name(common), name, key.public_key(), ca_key, usage=usage)
            write_whole(path_certificate, _pem(certificate))
            write_whole(path_key, _key_pem(key))
        write_whole(self._clients, _pem(ca))


def vendor(directory: Path, suite: Suite = NIST, *, software: bool = False) -> tuple[Vendor, Path]:
    """The vendor's authority of ``suite`` and the path of its firmware signing key, made at the first call.

    Firmware is signed with one key, whatever the suite: trusted firmware takes RSA and ECDSA only.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = directory if suite == NIST else directory / suite.name
    own.mkdir(exist_ok=True, mode=0o700)
    key, certificate = own / "vendor.key", own / "vendor-root.pem"
    if not key.exists():
        certificate.unlink(missing_ok=True)
        VendorAuthority.create(suite=suite).save(key, certificate)
    rot_key = directory / "firmware-rot.key"
    if not rot_key.exists():
        # TF-A's trusted boot takes RSA by default (TBBR).
        from cryptography.hazmat.primitives.asymmetric import rsa

        write_whole(rot_key, _key_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    authority = VendorAuthority.load(key, certificate)
    return Vendor(authority.certificate, authority.key, own, software), rot_key


def platform_owner(home: Path, suite: Suite = NIST) -> OwnerIdentity:
    """Key and certificate of the platform's owner, made at the first call."""
    directory = home / "platform-owner"
    if not (directory / KEY_FILE).exists():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return OwnerIdentity.create(directory, "platform owner", suite=suite)
    return OwnerIdentity.load(directory)


def make_state_disk(path: Path, credentials: Credentials) -> None:
    """An ext4 disk that holds the server's part of the credentials; appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        content = Path(work) / "state"
        shutil.copytree(credentials.server, content / "api")
        disk = Path(work) / "state.img"
        with disk.open("wb") as file:
            file.truncate(STATE_BYTES)
        tools.run(["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", content, disk])
        disk.chmod(0o600)
        disk.rename(path)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey | object) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import rsa

    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    authority: bool = False,
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(key_usage(sign_certificates=authority), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if usage == ExtendedKeyUsageOID.SERVER_AUTH:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())
