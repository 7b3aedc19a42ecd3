"""The owner: an ECDSA P-256 key, its self-signed certificate, and what it signs (section 8).

The certificate is in the measured configuration and its key is what counts: its dates are not looked at
when a message is verified, because no clock of the owner's is there to compare with.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from vambrace.attest.cbor import decode, encode
from vambrace.attest.chain import UNREADABLE
from vambrace.attest.challenge import INSTANCE_BYTES
from vambrace.attest.cose import decode_sign1, sign1
from vambrace.attest.endorsement import (
    ROOT_DAYS,
    certificate_builder,
    certificate_name,
    key_usage,
    load_private_key,
    write_private_key,
)
from vambrace.certificate import owner_public_key, personalization
from vambrace.errors import ConfigError, MalformedEvidence, MessageRefused, SignatureInvalid, UsageError
from vambrace.files import write_whole

KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
_RESTORE: Final = "take both files from a backup, or move them away and make a new identity: it owns no older image"
MAX_MESSAGE: Final = 4096
MAX_COUNTER: Final = (1 << 63) - 1


@dataclass(frozen=True)
class OwnerIdentity:
    """Key and certificate, with the paths of both files, as TLS libraries want them."""

    key: EllipticCurvePrivateKey
    certificate: x509.Certificate
    key_path: Path
    certificate_path: Path

    @classmethod
    def create(
        cls, directory: Path, name: str = "vambrace owner", *, now: datetime | None = None
    ) -> OwnerIdentity:
        """Make a new identity in ``directory``. Raises ``ConfigError`` if one is there."""
        key = generate_private_key(SECP256R1())
        subject = certificate_name(name)
        builder = certificate_builder(subject, subject, key.public_key(), now or datetime.now(UTC), ROOT_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(key_usage(sign_certificates=False), critical=True)
        certificate = builder.sign(key, SHA256())
        identity = cls(key, certificate, directory / KEY_FILE, directory / CERTIFICATE_FILE)
        write_private_key(identity.key_path, key)
        try:
            write_whole(identity.certificate_path, identity.certificate_pem.encode(), mode=0o644)
        except OSError as error:
            # A key without its certificate would be in the way of the next attempt.
            identity.key_path.unlink()
            raise ConfigError(
                f"{identity.certificate_path} cannot be written: {error.strerror}",
                hint="make room there, or choose another folder",
            ) from error
        return identity

    @classmethod
    def load(cls, directory: Path) -> OwnerIdentity:
        """Raises ``ConfigError`` for files that are missing, damaged or of different keys."""
        key_path, certificate_path = directory / KEY_FILE, directory / CERTIFICATE_FILE
        try:
            key = load_private_key(key_path.read_bytes())
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except OSError:
            raise ConfigError(
                f"there is no owner's identity in {directory}",
                hint="'vambrace owner create' makes one; VAMBRACE_HOME says where",
            ) from None
        except UNREADABLE:
            raise ConfigError(f"the owner's identity in {directory} is damaged", hint=_RESTORE) from None
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"key and certificate in {directory} do not belong together", hint=_RESTORE)
        return cls(key, certificate, key_path, certificate_path)

    @property
    def certificate_pem(self) -> str:
        """For the ``owner`` entry of a configuration."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def personalization(self) -> bytes:
        """The personalization value of this owner's Realms, 64 bytes."""
        return personalization(self.spki)

    def sign_verdict(self, instance: bytes, token_sha256: bytes, *, yes: bool) -> bytes:
        """The answer to one token: ``yes`` lets this instance start, no destroys it."""
        if len(token_sha256) != 32:
            raise UsageError("a verdict names the SHA-256 of a token")
        verdict = "yes" if yes else "no"
        return self._sign("verdict", instance, {"token": token_sha256, "verdict": verdict})

    def sign_percent(self, instance: bytes, zone: int, percent: int, counter: int) -> bytes:
        """An order to encrypt ``percent`` of a zone. ``counter`` must rise from message to message."""
        if not 0 <= percent <= 100:
            raise UsageError(f"percent is {percent}", hint="a whole number from 0 to 100")
        return self._sign_order("percent", instance, zone, counter, {"percent": percent})

    def sign_bounds(self, instance: bytes, zone: int, bounds: Bounds | None, counter: int) -> bytes:
        """An order that the host chooses a zone's percentage within ``bounds``; None: not any more.

        ``counter`` is the same one as that of percentages.
        """
        limits = {"lowest": bounds.lowest, "highest": bounds.highest, "slowdown": bounds.slowdown} if bounds else {}
        return self._sign_order("bounds", instance, zone, counter, {"on": bounds is not None, **limits})

    def _sign_order(self, kind: str, instance: bytes, zone: int, counter: int, rest: dict[str, Any]) -> bytes:
        if zone < 0 or not 0 <= counter <= MAX_COUNTER:
            raise UsageError("a zone or a counter is out of range")
        return self._sign(kind, instance, {"zone": zone, "counter": counter, **rest})

    def _sign(self, kind: str, instance: bytes, rest: dict[str, Any]) -> bytes:
        if len(instance) != INSTANCE_BYTES:
            raise UsageError(f"an instance has {INSTANCE_BYTES} bytes")
        return sign1(self.key, encode({"type": kind, "instance": instance, **rest}))


@dataclass(frozen=True)
class Bounds:
    """Between which the host may choose a zone's percentage: the highest from ``lowest`` to ``highest`` (1 to 100) at
    which page faults take no more than ``slowdown`` thousandths of a processor's time. Raises ``UsageError``.

    Not 0: there the kernel serves the page faults, and to watch them would cost more than encryption.
    """

    lowest: int
    highest: int
    slowdown: int

    def __post_init__(self) -> None:
        if not all(type(number) is int for number in (self.lowest, self.highest, self.slowdown)):
            raise UsageError("the bounds of a percentage are whole numbers")
        if not 1 <= self.lowest <= self.highest <= 100:
            raise UsageError(
                f"a percentage cannot be held between {self.lowest} and {self.highest}",
                hint="two whole numbers from 1 to 100, the lower one first",
            )
        if not 1 <= self.slowdown <= 999:
            raise UsageError(
                f"a slowdown of {self.slowdown} thousandths is not possible", hint="1 to 999, which is 0.1 to 99.9 %"
            )


@dataclass(frozen=True)
class BoundsOrder:
    """A verified order of the owner: to hold a zone's percentage within ``bounds``, or to end that (None)."""

    zone: int
    bounds: Bounds | None
    counter: int


@dataclass(frozen=True)
class PercentOrder:
    """A verified order of the owner."""

    zone: int
    percent: int
    counter: int


def verify_verdict(message: bytes, *, owner: str, instance: bytes, token_digest: bytes) -> bool:
    """Whether the owner says yes. ``owner`` is the certificate (PEM) of the configuration.

    A no that is verified is an answer, not an error. Raises ``MessageRefused`` for every message that is not
    this owner's verdict on this token of this instance.
    """
    body = _verify(message, "verdict", owner, instance, {"token", "verdict"})
    if body["token"] != token_digest:
        raise MessageRefused("the verdict is about another token")
    if body["verdict"] not in ("yes", "no"):
        raise MessageRefused("the verdict is neither yes nor no")
    return bool(body["verdict"] == "yes")


def verify_percent(message: bytes, *, owner: str, instance: bytes, last_counter: int) -> PercentOrder:
    """The owner's order, newer than ``last_counter``. Raises ``MessageRefused``.

    Whether the zone exists is the caller's to check.
    """
    body = _verify(message, "percent", owner, instance, {"zone", "percent", "counter"})
    zone, counter = _numbered(body, last_counter)
    percent = body["percent"]
    if type(percent) is not int or percent < 0:
        raise MessageRefused("the message has a value that is not a whole number")
    if percent > 100:
        raise MessageRefused(f"{percent} is not a percentage")
    return PercentOrder(zone, percent, counter)


def verify_bounds(message: bytes, *, owner: str, instance: bytes, last_counter: int) -> BoundsOrder:
    """As ``verify_percent``, for an order that the host chooses the percentage. Raises ``MessageRefused``."""
    limits = {"lowest", "highest", "slowdown"}
    body = _verify(message, "bounds", owner, instance, {"zone", "counter", "on"}, optional=limits)
    zone, counter = _numbered(body, last_counter)
    if type(body["on"]) is not bool:
        raise MessageRefused("the message says neither on nor off")
    if body.keys() & limits != (limits if body["on"] else set()):
        raise MessageRefused("the message has other fields than expected")
    if not body["on"]:
        return BoundsOrder(zone, None, counter)
    try:
        return BoundsOrder(zone, Bounds(body["lowest"], body["highest"], body["slowdown"]), counter)
    except UsageError as error:
        raise MessageRefused(error.message, hint=error.hint) from None


def _numbered(body: dict[str, Any], last_counter: int) -> tuple[int, int]:
    """Zone and counter of an order. Raises ``MessageRefused``: no numbers, or the counter was used."""
    zone, counter = body["zone"], body["counter"]
    if not all(type(number) is int and number >= 0 for number in (zone, counter)):
        raise MessageRefused("the message has a value that is not a whole number")
    if counter > MAX_COUNTER:
        raise MessageRefused("the counter is out of range")
    if counter <= last_counter:
        raise MessageRefused("the message is old: its counter was used already")
    return zone, counter


def _verify(
    message: bytes, kind: str, owner: str, instance: bytes, keys: set[str], optional: Set[str] = frozenset()
) -> dict[str, Any]:
    """The body of a message of ``kind``, with ``keys`` beside type and instance, and perhaps some ``optional`` ones."""
    if len(message) > MAX_MESSAGE:
        raise MessageRefused("the message is too long")
    try:
        signed = decode_sign1(message, "message")
        body = decode(signed.verify(_public_key(owner), "message"), limit=MAX_MESSAGE)
    except SignatureInvalid:
        raise MessageRefused("the message is not signed by the owner") from None
    except MalformedEvidence as error:
        raise MessageRefused(f"the message cannot be read: {error.message}") from None
    if not isinstance(body, dict) or body.get("type") != kind:
        raise MessageRefused(f"the message is not a {kind} message")
    if set(body) - optional != keys | {"type", "instance"}:
        raise MessageRefused("the message has other fields than expected")
    if body["instance"] != instance:
        raise MessageRefused("the message is for another instance")
    return body


def _public_key(owner: str) -> EllipticCurvePublicKey:
    try:
        key = load_der_public_key(owner_public_key(owner))
    except (ConfigError, ValueError):
        raise MessageRefused("the Realm has no owner whose key can be read") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise MessageRefused("the Realm has no owner whose key can be read")
    return key
