"""Debian's docker-registry, run for tests."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from vambrace.attest.suites import generate, private_pem
from vambrace.image.skopeo import Skopeo
from vambrace.suite import NIST

PASSWORD = "open sesame"
HASHED = "$2y$04$8sT/Q7QemrV0P86D7y3UTejj5AEp/Eb0Lco3T9nK6t/i/rpsU3efi"  # by bcrypt


@dataclass
class Registry:
    """Debian's docker-registry: where it is, its CA, credentials for it, and its log."""

    name: str
    certificates: Path
    authfile: Path
    log: Path

    @property
    def options(self) -> list[str]:
        return ["--cert-dir", str(self.certificates), "--authfile", str(self.authfile)]

    @property
    def skopeo(self) -> Skopeo:
        return Skopeo(self.authfile, self.certificates)

    def uploads(self, repository: str) -> int:
        """How many blobs were sent to ``repository`` so far."""
        done = re.findall(rf'"PUT /v2/{repository}/blobs/uploads/[^"]*" 201', self.log.read_text())
        return len(done)


def certify(folder: Path) -> None:
    key = generate(NIST)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).add_extension(address, False)
    made = made.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(True, None), True)
    (folder / "certificates").mkdir()
    (folder / "certificates/ca.crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(private_pem(key))


@contextmanager
def running_registry(folder: Path) -> Iterator[Registry]:
    """One that demands credentials and has a certificate of its own, on this machine."""
    certify(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "htpasswd").write_text(f"user:{HASHED}\n")
    settings = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
        "http": {
            "addr": name,
            "tls": {"certificate": str(folder / "certificates/ca.crt"), "key": str(folder / "key.pem")},
        },
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    (folder / "settings.yml").write_text(json.dumps(settings))
    token = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    (folder / "auth.json").write_text(json.dumps({"auths": {name: {"auth": token}}}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "settings.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while "listening on" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield Registry(name, folder / "certificates", folder / "auth.json", folder / "log")
    finally:
        process.terminate()
        process.wait()
