"""What a platform's owner signs: images that may run as Secure VMs, the key that signs from then on, and the end of a
platform.

A signature on an image is over what is measured: what was loaded is compared with it, not the files that hold it.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from vambrace.attest.cbor import decode, encode
from vambrace.attest.cose import decode_sign1, sign1
from vambrace.attest.policy import DEBUG, DECOMMISSIONED
from vambrace.attest.suites import PrivateKey, PublicKey, certificate_key, load_private, load_public, spki
from vambrace.errors import ConfigError, MalformedEvidence, MessageRefused, SignatureInvalid, VambraceError
from vambrace.suite import BY_HASH

MAX_SIGNATURE: Final = 4096
MAX_COUNTER: Final = (1 << 63) - 1
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)-----END PUBLIC KEY-----")
#: Where a platform's owner may take its life cycle.
OWNERS_STATES: Final = {"debug": DEBUG, "decommissioned": DECOMMISSIONED}


@dataclass(frozen=True)
class ImageStatement:
    """Everything that determines what an image runs: its class, the launch measurement made with ``hash``, and the same
    hash of its configuration."""

    kind: str
    hash: str
    measurement: bytes
    config: bytes

    @classmethod
    def of(cls, kind: str, algorithm: str, measurement: bytes, config: bytes) -> ImageStatement:
        """For a configuration's bytes."""
        return cls(kind, algorithm, measurement, BY_HASH[algorithm].digest(config))

    def as_object(self) -> dict[str, Any]:
        return {"class": self.kind, "hash": self.hash, "measurement": self.measurement, "config": self.config}


def sign_image(key: PrivateKey, statement: ImageStatement) -> bytes:
    """A COSE_Sign1 over ``statement``."""
    return sign1(key, encode({"type": "image", **statement.as_object()}))


def verify_image(message: bytes, owner: bytes) -> ImageStatement:
    """What the owner of the key ``owner`` (DER) has signed. Raises ``MessageRefused``: nothing, or something else."""
    body = _verify(message, owner, "image", {"class", "hash", "measurement", "config"})
    kind, algorithm, measurement, config = (body[key] for key in ("class", "hash", "measurement", "config"))
    if not all(isinstance(text, str) for text in (kind, algorithm)):
        raise MessageRefused("the image's signature has a value of a wrong type")
    if not all(isinstance(digest, bytes) and len(digest) == 32 for digest in (measurement, config)):
        raise MessageRefused("the image's signature has a value of a wrong type")
    return ImageStatement(kind, algorithm, measurement, config)


def sign_successor(key: PrivateKey, platform: bytes, successor: bytes, counter: int) -> bytes:
    """The present owner's word that ``successor`` (SubjectPublicKeyInfo, DER) signs from now on, for one platform: that
    with the attestation key ``platform``, and no other of the same owner's.

    ``counter`` is one more than that of the platform's last change.
    """
    body = {"type": "platform-owner", "platform": platform, "key": successor, "counter": counter}
    return sign1(key, encode(body))


def verify_successor(message: bytes, owner: bytes, platform: bytes, counter: int) -> bytes:
    """The next owner's key (DER). Raises ``MessageRefused``, also for a message of another change than ``counter``, or
    for another platform."""
    body = _verify(message, owner, "platform-owner", {"platform", "key", "counter"})
    if body["platform"] != platform:
        raise MessageRefused("the message is for another platform")
    if type(body["counter"]) is not int or body["counter"] != counter:
        raise MessageRefused(f"the message is not about change {counter} of the platform owner's key")
    check_public_key(body["key"])
    return bytes(body["key"])


def sign_lifecycle(key: PrivateKey, platform: bytes, state: str) -> bytes:
    """The owner's word that the platform with the attestation key ``platform`` goes to ``state``, "debug" or
    "decommissioned", for ever."""
    return sign1(key, encode({"type": "lifecycle", "platform": platform, "state": state}))


def verify_lifecycle(message: bytes, spki: bytes, platform: bytes) -> int:
    """The life cycle that the owner wants. Raises ``MessageRefused``, also for another platform's message."""
    body = _verify(message, spki, "lifecycle", {"platform", "state"})
    if body["platform"] != platform:
        raise MessageRefused("the message is for another platform")
    try:
        return OWNERS_STATES[body["state"]]
    except (KeyError, TypeError):
        states = " or ".join(OWNERS_STATES)
        raise MessageRefused("the message names no state that an owner may choose", hint=states) from None


def check_public_key(data: Any) -> PublicKey:
    """The key of a SubjectPublicKeyInfo (DER). Raises ``MessageRefused`` for one of no suite."""
    try:
        return load_public(data)
    except (TypeError, ValueError):
        raise MessageRefused("the platform owner's key cannot be read, or is neither ECDSA P-256 nor SM2") from None


def public_key(key: PrivateKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return spki(key.public_key())


def load_key(path: Path) -> PrivateKey:
    """The private key (PEM) of who signs. Raises ``ConfigError``."""
    hint = "give the private key of who signs, ECDSA P-256 or SM2, in PEM form"
    try:
        return load_private(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from None
    except (ConfigError, TypeError, ValueError):
        raise ConfigError(f"{path} holds no such key", hint=hint) from None


def load_public_key(path: Path) -> PublicKey:
    """Who signs, by a public key or a certificate (PEM). Raises ``ConfigError``."""
    hint = "a public key or a certificate, of ECDSA P-256 or SM2, in PEM form"
    try:
        pem = path.read_bytes()
        if b"BEGIN CERTIFICATE" in pem:
            return certificate_key(x509.load_pem_x509_certificate(pem))
        match = _PUBLIC.search(pem)
        return load_public(base64.b64decode(b"".join(match[1].split()), validate=True) if match else b"")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from None
    except (VambraceError, TypeError, ValueError):
        raise ConfigError(f"{path} holds no such key", hint=hint) from None


def _verify(message: bytes, owner: bytes, kind: str, keys: set[str]) -> dict[str, Any]:
    what = "image's signature" if kind == "image" else "message"
    if len(message) > MAX_SIGNATURE:
        raise MessageRefused(f"the {what} is too long")
    try:
        body = decode(decode_sign1(message, what).verify(check_public_key(owner), what), limit=MAX_SIGNATURE)
    except SignatureInvalid:
        raise MessageRefused(
            f"the {what} is not by the platform owner", hint="have it signed by the owner of this platform"
        ) from None
    except MalformedEvidence as error:
        raise MessageRefused(f"the {what} cannot be read: {error.message}") from None
    if not isinstance(body, dict) or body.get("type") != kind or set(body) != keys | {"type"}:
        raise MessageRefused(f"the {what} says something else than expected")
    return body
