"""Valid configurations, kernels and certificates for tests."""

from __future__ import annotations

import datetime
import functools
import struct
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vambrace.application import Application
from vambrace.attest import suites
from vambrace.attest.endorsement import certificate_builder, certificate_name
from vambrace.classes import NORMAL, SECURE
from vambrace.config import Disk, DomainConfig, Endpoint, Zone
from vambrace.suite import NIST, Suite

MIB = 1 << 20


def make_certificate(curve: ec.EllipticCurve | None = None) -> tuple[str, str]:
    """A self-signed certificate and its private key, both PEM."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "owner")])
    begin = datetime.datetime(2026, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


@functools.cache
def owner(suite: Suite = NIST) -> tuple[str, str]:
    """Certificate and private key, both PEM."""
    if suite == NIST:
        return make_certificate()
    key, name = suites.generate(suite), certificate_name("owner")
    builder = certificate_builder(name, name, key.public_key(), datetime.datetime(2026, 1, 1), 3650)
    certificate = suites.sign_certificate(builder, key.public_key(), key)
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), suites.private_pem(key).decode()


def make_disk(name: str = "base", **changes: Any) -> Disk:
    fields = {
        "sha256": "ab" * 32,
        "size": 8192,
        "data_size": 4096,
        "verity_root": "cd" * 32,
        "verity_salt": "",
    }
    return Disk(name=name, **{**fields, **changes})


def make_application(name: str = "analysis", **changes: Any) -> Application:
    fields: dict[str, Any] = {
        "command": ("python3", "analyse.py"),
        "environment": {"A": "b"},
        "directory": f"/app/{name}",
        "results": (f"/results/{name}/out.txt",),
    }
    return Application(name=name, **{**fields, **changes})


def make_endpoint(name: str = "records", **changes: Any) -> Endpoint:
    fields: dict[str, Any] = {"role": "offer", "port": 8000, "owner": "ef" * 64, "realm": "ward", "measurement": ""}
    return Endpoint(name=name, **{**fields, **changes})


def make_realm(names: tuple[str, ...] = ("analysis",), **changes: Any) -> DomainConfig:
    fields: dict[str, Any] = {
        "name": "patients",
        "cmdline": "quiet",
        "owner": owner()[0],
        "zones": (Zone("system", 128 * MIB, 80, True), *(Zone(name, 16 * MIB, 80) for name in names)),
        "applications": tuple(make_application(name) for name in names),
        "disks": (make_disk("base"), make_disk("apps")),
    }
    return DomainConfig(**{**fields, **changes})


def make_secure(names: tuple[str, ...] = ("analysis",), **changes: Any) -> DomainConfig:
    zones = (Zone("system", 128 * MIB, 0), *(Zone(name, 16 * MIB, 0) for name in names))
    return make_realm(names, **{"kind": SECURE, "zones": zones, **changes})


def make_normal(**changes: Any) -> DomainConfig:
    fields: dict[str, Any] = {
        "kind": NORMAL,
        "name": "debian",
        "cmdline": "root=/dev/vda rw",
        "zones": (Zone("system", 256 * MIB, 0),),
        "disks": (Disk("root", "ab" * 32, 8192),),
    }
    return DomainConfig(**{**fields, **changes})


def make_kernel(size: int = 1 << 20) -> bytes:
    """Bytes that begin with an arm64 Image header (Linux, Documentation/arch/arm64/booting.rst)."""
    header = struct.pack("<IIQQQQQQ4sI", 0x14000010, 0, 0, size, 0b1010, 0, 0, 0, b"ARM\x64", 0)
    return header.ljust(size, b"\x5a")


def make_elf(machine: int = 183, kind: int = 2) -> bytes:
    """The header of an ELF file without contents; 183 is arm64, 62 is x86-64, 2 is a program."""
    start = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    return start + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 0, 0, 0, 64, 56, 0, 64, 0, 0)
