"""What a platform's owner signs: images that may run as Secure VMs, the key that signs from then on, and the end of a
platform.

A signature on an image is over what is measured: what was loaded is compared with it, not the files that hold it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from vambrace.attest.cbor import decode, encode
from vambrace.attest.cose import decode_sign1, sign1
from vambrace.attest.endorsement import load_private_key
from vambrace.attest.policy import DEBUG, DECOMMISSIONED
from vambrace.errors import ConfigError, MalformedEvidence, MessageRefused, SignatureInvalid

MAX_SIGNATURE: Final = 4096
MAX_COUNTER: Final = (1 << 63) - 1
#: Where a platform's owner may take its life cycle.
OWNERS_STATES: Final = {"debug": DEBUG, "decommissioned": DECOMMISSIONED}


@dataclass(frozen=True)
class ImageStatement:
    """Everything that determines what an image runs: its class, the launch measurement made with ``hash``, and the
    SHA-256 of its configuration."""

    kind: str
    hash: str
    measurement: bytes
    config: bytes

    @classmethod
    def of(cls, kind: str, algorithm: str, measurement: bytes, config: bytes) -> ImageStatement:
        """For a configuration's bytes."""
        return cls(kind, algorithm, measurement, hashlib.sha256(config).digest())

    def as_object(self) -> dict[str, Any]:
        return {"class": self.kind, "hash": self.hash, "measurement": self.measurement, "config": self.config}


def sign_image(key: EllipticCurvePrivateKey, statement: ImageStatement) -> bytes:
    """A COSE_Sign1 (ES256) over ``statement``."""
    return sign1(key, encode({"type": "image", **statement.as_object()}))


def verify_image(message: bytes, spki: bytes) -> ImageStatement:
    """What the owner of the key ``spki`` (DER) has signed. Raises ``MessageRefused``: nothing, or something else."""
    body = _verify(message, spki, "image", {"class", "hash", "measurement", "config"})
    kind, algorithm, measurement, config = (body[key] for key in ("class", "hash", "measurement", "config"))
    if not all(isinstance(text, str) for text in (kind, algorithm)):
        raise MessageRefused("the image's signature has a value of a wrong type")
    if not all(isinstance(digest, bytes) and len(digest) == 32 for digest in (measurement, config)):
        raise MessageRefused("the image's signature has a value of a wrong type")
    return ImageStatement(kind, algorithm, measurement, config)


def sign_successor(key: EllipticCurvePrivateKey, platform: bytes, successor: bytes, counter: int) -> bytes:
    """The present owner's word that ``successor`` (SubjectPublicKeyInfo, DER) signs from now on, for one platform: that
    with the attestation key ``platform``, and no other of the same owner's.

    ``counter`` is one more than that of the platform's last change.
    """
    body = {"type": "platform-owner", "platform": platform, "key": successor, "counter": counter}
    return sign1(key, encode(body))


def verify_successor(message: bytes, spki: bytes, platform: bytes, counter: int) -> bytes:
    """The next owner's key (DER). Raises ``MessageRefused``, also for a message of another change than ``counter``, or
    for another platform."""
    body = _verify(message, spki, "platform-owner", {"platform", "key", "counter"})
    if body["platform"] != platform:
        raise MessageRefused("the message is for another platform")
    if type(body["counter"]) is not int or body["counter"] != counter:
        raise MessageRefused(f"the message is not about change {counter} of the platform owner's key")
    check_public_key(body["key"])
    return bytes(body["key"])


def sign_lifecycle(key: EllipticCurvePrivateKey, platform: bytes, state: str) -> bytes:
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


def check_public_key(spki: Any) -> EllipticCurvePublicKey:
    """The P-256 key of a SubjectPublicKeyInfo. Raises ``MessageRefused``."""
    try:
        key = load_der_public_key(spki)
    except (TypeError, ValueError):
        raise MessageRefused("the platform owner's key cannot be read") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise MessageRefused("the platform owner's key is not ECDSA P-256")
    return key


def public_key(key: EllipticCurvePrivateKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load_key(path: Path) -> EllipticCurvePrivateKey:
    """The platform owner's private key (PEM). Raises ``ConfigError``."""
    hint = "the platform owner's private key, ECDSA P-256, in PEM form"
    try:
        return load_private_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from None
    except (ConfigError, TypeError, ValueError):
        raise ConfigError(f"{path} holds no such key", hint=hint) from None


def _verify(message: bytes, spki: bytes, kind: str, keys: set[str]) -> dict[str, Any]:
    what = "image's signature" if kind == "image" else "message"
    if len(message) > MAX_SIGNATURE:
        raise MessageRefused(f"the {what} is too long")
    try:
        body = decode(decode_sign1(message, what).verify(check_public_key(spki), what), limit=MAX_SIGNATURE)
    except SignatureInvalid:
        raise MessageRefused(
            f"the {what} is not by the platform owner", hint="have it signed by the owner of this platform"
        ) from None
    except MalformedEvidence as error:
        raise MessageRefused(f"the {what} cannot be read: {error.message}") from None
    if not isinstance(body, dict) or body.get("type") != kind or set(body) != keys | {"type"}:
        raise MessageRefused(f"the {what} says something else than expected")
    return body
