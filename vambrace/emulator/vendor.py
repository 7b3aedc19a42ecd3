"""The vendor of emulated servers: an authority that keeps what it has certified, and publishes what it has revoked."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ReasonFlags

from vambrace.attest.endorsement import LEAF_DAYS, VendorAuthority, platform_instance_id
from vambrace.attest.keys import decode_key
from vambrace.attest.revocation import load_list
from vambrace.attest.suites import suite_of
from vambrace.errors import ConfigError
from vambrace.files import write_whole

#: A list is made anew when it is older, so that who verifies has one that is fresh.
RENEWED: Final = timedelta(days=1)


@dataclass(frozen=True)
class Vendor(VendorAuthority):
    """``directory`` has ``issued/INSTANCE-SERIAL.pem`` for each certificate of a platform, and ``vendor.crl``.

    ``software``: it certifies the keys of platforms without TrustZone, and no others.
    """

    directory: Path
    software: bool = False

    def certify(self, cose_key: bytes, *, now: datetime | None = None, days: int = LEAF_DAYS) -> x509.Certificate:
        """As every authority does; raises ``ConfigError`` for a key that was revoked: it stays so."""
        instance = _instance(cose_key)
        with self._alone():
            before = self._list()
            if before and self._serials(instance) & load_list(before).revoked.keys():
                raise ConfigError(
                    "the vendor has revoked this platform's key", hint="'vambrace server reset' makes a new machine"
                )
            certificate = super().certify(cose_key, now=now, days=days)
            issued = self.directory / "issued"
            issued.mkdir(mode=0o700, exist_ok=True)
            name = f"{instance[1:].hex()}-{certificate.serial_number:x}.pem"
            write_whole(issued / name, certificate.public_bytes(Encoding.PEM))
        return certificate

    def revoke(self, cose_key: bytes, reason: ReasonFlags = ReasonFlags.key_compromise) -> int:
        """Revoke every certificate of a platform's key; how many were not revoked before.

        Raises ``ConfigError`` if it has none.
        """
        return self.revoke_instance(_instance(cose_key), reason)

    def revoke_instance(self, instance: bytes, reason: ReasonFlags = ReasonFlags.key_compromise) -> int:
        """The same, of the platform whose identity (UEID, 33 bytes) its tokens have."""
        with self._alone():
            serials, before = self._serials(instance), self._list()
            if not serials:
                raise ConfigError(
                    f"this vendor has certified nothing of the platform {instance.hex()}, so nothing was revoked",
                    hint="compare it with platform-instance-id in a token; another suite's vendor is another one",
                )
            new = serials - load_list(before).revoked.keys() if before else serials
            self._publish(before, dict.fromkeys(new, reason))
        return len(new)

    def retire(self, cose_key: bytes) -> None:
        """What was certified for a platform's key, if anything was, is revoked: the platform is out of service."""
        if self._serials(_instance(cose_key)):
            self.revoke(cose_key, ReasonFlags.cessation_of_operation)

    def present_list(self) -> bytes:
        """``vendor.crl``, made anew if it is a day old."""
        with self._alone():
            before = self._list()
            if before and datetime.now(UTC) - load_list(before).this_update < RENEWED:
                return before
            return self._publish(before, {})

    def _serials(self, instance: bytes) -> set[int]:
        """Of what was certified for a platform."""
        paths = (self.directory / "issued").glob(f"{instance[1:].hex()}-*.pem")
        return {x509.load_pem_x509_certificate(path.read_bytes()).serial_number for path in paths}

    def _publish(self, before: bytes | None, revoked: dict[int, ReasonFlags]) -> bytes:
        data = self.revocation_list(before, revoke=revoked)
        write_whole(self.directory / "vendor.crl", data, mode=0o644)
        return data

    def _list(self) -> bytes | None:
        path = self.directory / "vendor.crl"
        return path.read_bytes() if path.exists() else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Servers share their vendor: no list may be lost because two are written at once."""
        with (self.directory / "vendor.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _instance(cose_key: bytes) -> bytes:
    return platform_instance_id(cose_key, suite_of(decode_key(cose_key)))
