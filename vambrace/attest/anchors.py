"""What a verifier takes as true without evidence, and how it is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from vambrace.attest import ccavalues, corim, references
from vambrace.attest.ccavalues import PlatformKey, PlatformValues, RealmValues
from vambrace.attest.chain import load_roots
from vambrace.attest.policy import Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.revocation import Revocation, RevocationList, load_list
from vambrace.errors import ConfigError


@dataclass(frozen=True)
class Anchors:
    """``roots`` are the vendors' authorities, ``references`` the reference values of their platforms,
    ``revocation_lists`` what they have revoked.

    Of Arm CCA platforms: ``cca_platforms`` are reference values, ``cca_keys`` the keys of single machines. ``realms``
    are reference values of Realms, of any platform. After ``until`` (seconds since 1970) some of it has expired, and
    nothing is accepted by it.
    """

    roots: tuple[x509.Certificate, ...] = ()
    references: tuple[ReferenceValues, ...] = ()
    revocation_lists: tuple[RevocationList, ...] = ()
    cca_platforms: tuple[PlatformValues, ...] = ()
    cca_keys: tuple[PlatformKey, ...] = ()
    realms: tuple[RealmValues, ...] = ()
    until: float = math.inf

    @classmethod
    def load(
        cls,
        *,
        roots: Sequence[bytes] = (),
        corims: Sequence[bytes] = (),
        lists: Sequence[bytes] = (),
        signers: Sequence[bytes] = (),
        policy: Policy | None = None,
        now: datetime | None = None,
    ) -> Anchors:
        """From the contents of files: roots (PEM), signed CoRIMs, revocation lists (PEM or DER), and public keys (PEM)
        whose CoRIMs are believed without a certificate. What ``policy`` says of revocation counts for their signers.

        Raises ``ConfigError``, and what ``corim.verify`` raises.
        """
        time = now or datetime.now(UTC)
        authorities = tuple(certificate for pem in roots for certificate in load_roots(pem))
        revocation_lists = tuple(load_list(data) for data in lists)
        keys = [_signer(pem) for pem in signers]
        known = policy or Policy()
        revocation = Revocation(revocation_lists, known.require_revocation, known.revocation_age)
        anchors = cls(authorities, revocation_lists=revocation_lists)
        for data in corims:
            verified = corim.verify(data, roots=authorities, now=time, signers=keys, revocation=revocation)
            anchors = anchors.with_corim(verified)
        return anchors

    def with_corim(self, verified: corim.Corim) -> Anchors:
        """These, and what a verified CoRIM gives, by its profile. Raises ``MalformedEvidence``."""
        platforms: tuple[PlatformValues, ...] = ()
        keys: tuple[PlatformKey, ...] = ()
        ours: tuple[ReferenceValues, ...] = ()
        realms: tuple[RealmValues, ...] = ()
        if verified.profile == ccavalues.PLATFORM_PROFILE:
            platforms, keys = ccavalues.read_platform(verified)
        elif verified.profile == ccavalues.REALM_PROFILE:
            realms = ccavalues.read_realm(verified)
        else:
            ours = (references.read(verified),)
        return Anchors(
            self.roots,
            self.references + ours,
            self.revocation_lists,
            self.cca_platforms + platforms,
            self.cca_keys + keys,
            self.realms + realms,
            min(self.until, verified.validity[1] if verified.validity else math.inf),
        )


def read_anchors(
    *,
    roots: Sequence[Path] = (),
    corims: Sequence[Path] = (),
    lists: Sequence[Path] = (),
    signers: Sequence[Path] = (),
    policy: Policy | None = None,
    now: datetime | None = None,
) -> Anchors:
    """``Anchors.load`` of files. Raises ``ConfigError`` for one that cannot be read, too."""
    return Anchors.load(
        roots=[_read(path, "vendor root") for path in roots],
        corims=[_read(path, "reference values") for path in corims],
        lists=[_read(path, "revocation list") for path in lists],
        signers=[_read(path, "signer's public key") for path in signers],
        policy=policy,
        now=now,
    )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot be read: {path}: {error.strerror}", hint="check the path; the vendor publishes it"
        ) from None


def _signer(pem: bytes) -> EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("the signer's public key cannot be read", hint="a public key in PEM form") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1 | SECP384R1):
        raise ConfigError("the signer's public key is not on P-256 or P-384")
    return key
