"""A new broker: its folder with key, certificate, master key and settings."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from vambrace.attest.endorsement import (
    ROOT_DAYS,
    certificate_builder,
    certificate_name,
    key_usage,
    write_private_key,
)
from vambrace.broker.platforms import PlatformFiles
from vambrace.broker.settings import FILE, PORT, Settings, load_settings
from vambrace.broker.vault import Vault
from vambrace.errors import ConfigError
from vambrace.files import write_whole

CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
MASTER_KEY: Final = "master.key"
ANCHOR: Final = "log.anchor"
DATABASE: Final = "sqlite:///broker.db"


def create(
    folder: Path,
    *,
    names: Sequence[str],
    platforms: Mapping[str, PlatformFiles],
    repositories: Mapping[str, bytes],
    listen: str = "127.0.0.1",
    port: int = PORT,
    database: str = DATABASE,
) -> Settings:
    """Make a broker in ``folder``. ``names`` are DNS names and addresses by which Realms reach it; ``repositories``
    have their owner's certificate (PEM) each. Raises ``ConfigError``, also where a broker is there already."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / FILE).exists():
            raise ConfigError(f"there is a broker in {folder}", hint="its keys are never overwritten: choose another")
        key = generate_private_key(SECP256R1())
        write_private_key(folder / KEY, key)
        subject = certificate_name("vambrace broker")
        builder = certificate_builder(subject, subject, key.public_key(), datetime.now(UTC), ROOT_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(key_usage(sign_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        write_whole(folder / CERTIFICATE, builder.sign(key, SHA256()).public_bytes(Encoding.PEM), mode=0o644)
        Vault.create(folder / MASTER_KEY)
        lines = [
            f"listen = {json.dumps(listen)}",
            f"port = {port}",
            f"certificate = {json.dumps(CERTIFICATE)}",
            f"key = {json.dumps(KEY)}",
            f"master_key = {json.dumps(MASTER_KEY)}",
            f"database = {json.dumps(database)}",
            f"anchor = {json.dumps(ANCHOR)}",
        ]
        for name, files in platforms.items():
            lines += ["", f"[platforms.{json.dumps(name)}]", f"root = {json.dumps(str(files.root.absolute()))}"]
            if files.references is None:
                lines.append("insecure = true")
            else:
                lines.append(f"references = {json.dumps(str(files.references.absolute()))}")
        for name, owner in repositories.items():
            certificate = f"owner-{name}.pem"
            write_whole(folder / certificate, owner, mode=0o644)
            lines += ["", f"[repositories.{json.dumps(name)}]", f"owners = [{json.dumps(certificate)}]"]
        # Last: a folder with settings is a whole broker.
        write_whole(folder / FILE, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="make room there, or choose another folder") from error
    return load_settings(folder)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError:
        raise ConfigError(f"{text[:60]!a} is no name of a machine", hint="a DNS name or an address") from None
