"""The owner: a key of a suite, its self-signed certificate, and what it signs (docs/architecture.md, section 8).

Where TLS cannot use the suite's keys the owner has one more, an ordinary one for TLS, whose certificate is in the
measured configuration too: the owner's verdict on the measurement vouches for it.

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
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.cbor import decode, encode
from vambrace.attest.chain import UNREADABLE
from vambrace.attest.challenge import INSTANCE_BYTES
from vambrace.attest.cose import decode_sign1, sign1
from vambrace.attest.endorsement import (
    ROOT_DAYS,
    certificate_builder,
    certificate_name,
    key_usage,
    write_private_key,
)
from vambrace.attest.suites import (
    PrivateKey,
    PublicKey,
    certificate_key,
    generate,
    load_private,
    load_public,
    sign_certificate,
    spki,
    suite_of,
)
from vambrace.certificate import owner_public_key, personalization
from vambrace.errors import ConfigError, MalformedEvidence, MessageRefused, SignatureInvalid, UsageError
from vambrace.files import write_whole
from vambrace.suite import DIGEST_BYTES, NIST, Suite

KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
CHANNEL_KEY_FILE: Final = "channel-key.pem"
CHANNEL_CERTIFICATE_FILE: Final = "channel-certificate.pem"
_RESTORE: Final = "take both files from a backup, or move them away and make a new identity: it owns no older image"
MAX_MESSAGE: Final = 4096
MAX_COUNTER: Final = (1 << 63) - 1


@dataclass(frozen=True)
class OwnerIdentity:
    """Key and certificate, with the paths of both files; and those of the key for TLS, as TLS libraries want them."""

    key: PrivateKey
    certificate: x509.Certificate
    key_path: Path
    certificate_path: Path
    channel_certificate: x509.Certificate
    channel_key_path: Path
    channel_certificate_path: Path

    @classmethod
    def create(
        cls, directory: Path, name: str = "vambrace owner", *, suite: Suite = NIST, now: datetime | None = None
    ) -> OwnerIdentity:
        """Make a new identity in ``directory``. Raises ``ConfigError`` if one is there."""
        pairs = [(KEY_FILE, CERTIFICATE_FILE, suite)]
        if not suite.tls:
            pairs.append((CHANNEL_KEY_FILE, CHANNEL_CERTIFICATE_FILE, NIST))
        written: list[Path] = []
        try:
            for key_file, certificate_file, its_suite in pairs:
                key = generate(its_suite)
                pem = _self_signed(key, name, now or datetime.now(UTC)).public_bytes(Encoding.PEM)
                write_private_key(directory / key_file, key)
                written.append(directory / key_file)
                _write_certificate(directory / certificate_file, pem)
                written.append(directory / certificate_file)
        except BaseException:
            # A part of an identity would be in the way of the next attempt.
            for path in written:
                path.unlink()
            raise
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> OwnerIdentity:
        """Raises ``ConfigError`` for files that are missing, damaged or of different keys."""
        key, certificate = _load_pair(directory, KEY_FILE, CERTIFICATE_FILE)
        names = (KEY_FILE, CERTIFICATE_FILE)
        channel = certificate
        if not suite_of(key).tls:
            names = (CHANNEL_KEY_FILE, CHANNEL_CERTIFICATE_FILE)
            _, channel = _load_pair(directory, *names)
        paths = [directory / file for file in (KEY_FILE, CERTIFICATE_FILE, *names)]
        return cls(key, certificate, paths[0], paths[1], channel, paths[2], paths[3])

    @property
    def suite(self) -> Suite:
        return suite_of(self.key)

    @property
    def certificate_pem(self) -> str:
        """For the ``owner`` entry of a configuration."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def channel_pem(self) -> str:
        """For the ``channel`` entry of a configuration: empty where the owner's own key serves for TLS."""
        return "" if self.suite.tls else self.channel_certificate.public_bytes(Encoding.PEM).decode()

    @property
    def channel_paths(self) -> tuple[Path, Path]:
        """Certificate and key that TLS uses."""
        return self.channel_certificate_path, self.channel_key_path

    @property
    def published(self) -> str:
        """What a manifest's ``owner`` names: the certificate, and that of the key for TLS where there is one more."""
        return self.certificate_pem + self.channel_pem

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        return spki(self.key.public_key())

    def personalization(self) -> bytes:
        """The personalization value of this owner's Realms, 64 bytes."""
        return personalization(self.spki)

    def sign_verdict(self, instance: bytes, token_digest: bytes, *, yes: bool) -> bytes:
        """The answer to one token: ``yes`` lets this instance start, no destroys it."""
        if len(token_digest) != DIGEST_BYTES:
            raise UsageError("a verdict names the hash of a token, by the owner's suite")
        verdict = "yes" if yes else "no"
        return self._sign("verdict", instance, {"token": token_digest, "verdict": verdict})

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


def _self_signed(key: PrivateKey, name: str, now: datetime) -> x509.Certificate:
    subject = certificate_name(name)
    builder = certificate_builder(subject, subject, key.public_key(), now, ROOT_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(key_usage(sign_certificates=False), critical=True)
    return sign_certificate(builder, key.public_key(), key)


def _write_certificate(path: Path, pem: bytes) -> None:
    try:
        write_whole(path, pem, mode=0o644)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", hint="make room there, or choose another folder"
        ) from error


def _load_pair(directory: Path, key_file: str, certificate_file: str) -> tuple[PrivateKey, x509.Certificate]:
    try:
        key = load_private((directory / key_file).read_bytes())
        certificate = x509.load_pem_x509_certificate((directory / certificate_file).read_bytes())
        same = certificate_key(certificate) == key.public_key()
    except OSError:
        raise ConfigError(
            f"there is no owner's identity in {directory}",
            hint="'vambrace owner create' makes one; VAMBRACE_HOME says where",
        ) from None
    except UNREADABLE:
        raise ConfigError(f"the owner's identity in {directory} is damaged", hint=_RESTORE) from None
    if not same:
        raise ConfigError(f"key and certificate in {directory} do not belong together", hint=_RESTORE)
    return key, certificate


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


def _public_key(owner: str) -> PublicKey:
    try:
        return load_public(owner_public_key(owner))
    except (ConfigError, ValueError):
        raise MessageRefused("the Realm has no owner whose key can be read") from None
