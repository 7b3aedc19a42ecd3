"""The platform's owner: whose key it is, how it changes, and whether an image has that owner's signature.

The key is set once, by whoever provisions the host, and then locked: only a message signed with it puts another in its
place. It lies on the state disk, so it is as lasting, and as replaceable by whoever can erase that disk, as the
endorsement: a factory step begins anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from vambrace.attest.chain import UNREADABLE
from vambrace.attest.image import ImageStatement, check_public_key, verify_image, verify_lifecycle, verify_successor
from vambrace.attest.suites import certificate_key, suite_of
from vambrace.attest.suites import spki as encode_spki
from vambrace.classes import NEVER, REQUIRED
from vambrace.config import DomainConfig
from vambrace.errors import CapacityError, ConfigError, Conflict, HostError, MessageRefused, VambraceError
from vambrace.files import write_whole
from vambrace.suite import NIST, Suite

MAX_BODY = 64 << 10
PEM = b"-----BEGIN"

log = logging.getLogger(__name__)


class PlatformOwner:
    """``path`` is where the key is kept. One that cannot be read any more counts as set to nobody's: fail closed.
    ``platform`` gives the platform's own key, which says of which platform an owner speaks; the owner's is of its
    ``suite``."""

    def __init__(self, path: Path, platform: Callable[[], bytes], suite: Suite = NIST) -> None:
        self._suite = suite
        self._path = path
        self._platform = platform
        self._putting = asyncio.Lock()
        self.spki: bytes | None = None
        self.changes = 0
        self._locked = path.exists()
        if self._locked:
            try:
                kept = json.loads(path.read_bytes())
                spki, changes = bytes.fromhex(kept["key"]), kept["changes"]
                self._check_suite(spki)
                if type(changes) is not int or changes < 0:
                    raise ValueError("not a count")
            except (OSError, ValueError, TypeError, KeyError, RecursionError, VambraceError) as error:
                log.error("%s is damaged, nothing is started that must be signed: %s", path, error)
            else:
                self.spki, self.changes = spki, changes

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the key, for people to compare."""
        return None if self.spki is None else hashlib.sha256(self.spki).hexdigest()

    async def put(self, body: bytes) -> None:
        """The first key, as a certificate (PEM), or the present owner's word for the next one (COSE_Sign1).

        Raises ``ConfigError`` (no certificate), ``Conflict`` (another key is set), ``MessageRefused``,
        ``CapacityError``.
        """
        if len(body) > MAX_BODY:
            raise ConfigError(f"the platform owner's key is longer than {MAX_BODY} bytes")
        async with self._putting:  # of two that come together, the second finds what the first has set
            await self._put(body)

    async def _put(self, body: bytes) -> None:
        if body.startswith(PEM):
            spki = _certified(body)
            self._check_suite(spki)
            if spki == self.spki:
                return
            if self._locked:
                raise Conflict(
                    "this platform has an owner",
                    hint="only a message signed with the present key changes it, or a factory step",
                    status=409,
                )
            await self._keep(spki, 0)
        elif self.spki is None:
            raise Conflict("this platform has no owner whose word could count", hint="send a certificate", status=409)
        else:
            spki = verify_successor(body, self.spki, self._platform(), self.changes + 1)
            self._check_suite(spki)
            await self._keep(spki, self.changes + 1)

    def lifecycle(self, message: bytes) -> int:
        """Where the owner wants this platform's life cycle to go. Raises ``Conflict``, ``MessageRefused``."""
        if self.spki is None:
            raise Conflict("this platform has no owner whose word could count", hint="send a certificate", status=409)
        return verify_lifecycle(message, self.spki, self._platform())

    def _check_suite(self, spki: bytes) -> None:
        if suite_of(check_public_key(spki)) != self._suite:
            raise ConfigError(
                f"the platform owner's key is not {self._suite.signature}, as the platform's {self._suite} has it",
                hint=f"'vambrace owner create --suite {self._suite.name}' makes one",
            )

    async def _keep(self, spki: bytes, changes: int) -> None:
        text = json.dumps({"key": spki.hex(), "changes": changes})
        try:
            await asyncio.to_thread(write_whole, self._path, text.encode())
        except OSError as error:
            raise CapacityError(
                f"the platform owner's key cannot be written: {error.strerror}", hint="look at the host's state disk"
            ) from error
        self.spki, self.changes, self._locked = spki, changes, True

    def check(self, config: DomainConfig, signature: bytes | None, *, demanded: bool = False) -> bytes | None:
        """The launch measurement that was signed for this configuration; None where no signature is needed or there.

        ``demanded``: the host takes no image without one. Raises ``MessageRefused``: it is missing, another key's or
        another image's; ``HostError`` (503): the platform has no owner.
        """
        kind = config.kind
        if kind.signature == NEVER or (signature is None and kind.signature != REQUIRED and not demanded):
            return None
        if self.spki is None:
            raise HostError(
                f"this platform has no owner whose signature a {kind} could have",
                hint="provision it with PUT /v1/platform/owner",
                status=503,
            )
        if signature is None:
            raise MessageRefused(
                f"the image is not signed, and a {kind} must be",
                hint="the platform's owner signs it with 'vambrace image sign'",
            )
        signed = verify_image(signature, self.spki)
        if signed != ImageStatement.of(kind.name, config.hash, signed.measurement, config.encode()):
            raise MessageRefused("the image's signature is another image's", hint="sign this image")
        return signed.measurement


def _certified(pem: bytes) -> bytes:
    """The key (DER) in a certificate. Raises ``ConfigError``."""
    hint = "the owner's self-signed certificate in PEM form, with a key of ECDSA P-256 or SM2"
    try:
        key = certificate_key(x509.load_pem_x509_certificate(pem))
        suite_of(key)
    except UNREADABLE:
        raise ConfigError("the platform owner's certificate cannot be read", hint=hint) from None
    return encode_spki(key)
