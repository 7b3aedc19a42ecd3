"""Certificates that a manifest names, in the one spelling that a configuration has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vambrace.certificate import certificate_der, certificate_pem, owner_public_key
from vambrace.errors import ConfigError

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


def read_owner(path: Path) -> tuple[str, str]:
    """What 'vambrace owner show' has printed: the owner's certificate, and that of the owner's key for TLS, if there is
    one (else ""). Raises ``ConfigError``."""
    certificate, channel, *_ = [*read_certificates(path, "owner", most=2), ""]
    for pem in filter(None, (certificate, channel)):
        owner_public_key(pem)
    return certificate, channel


def read_certificates(path: Path, whose: str, most: int = 1) -> list[str]:
    """The certificates in the file at ``path``, at least one. Raises ``ConfigError``."""
    hint = f"the path of the {whose}'s certificate in PEM form, relative to the manifest"
    if whose == "owner":
        hint = "give the file in PEM form that 'vambrace owner show > owner.pem' writes"
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{whose}: {path}: {error.strerror}", hint=hint) from None
    except ValueError:  # not ASCII, or no path at all
        raise ConfigError(f"{whose}: {path} is not in PEM form", hint=hint) from None
    if "PRIVATE KEY" in text:
        raise ConfigError(f"{whose}: {path} holds a private key", hint="give the certificate; the key stays with you")
    found: list[str] = []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while lines or not found:
        end = lines.index(_END) + 1 if _END in lines else 0
        if lines[:1] != [_BEGIN] or not end or len(found) == most:
            number = "one certificate" if most == 1 else f"one to {most} certificates"
            raise ConfigError(f"{whose}: {path} is not {number} in PEM form", hint=hint)
        found.append(certificate_pem(certificate_der("\n".join(lines[:end]) + "\n")))
        lines = lines[end:]
    return found
