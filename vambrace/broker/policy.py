"""What a Realm must be to have a secret. A policy is bound to each secret, and names images, never "any".

::

    {"platform": "default",                the vendor's root and reference values, by the broker's name for them
     "measurements": ["<hex>", …],         launch measurements: an owner's next version is one more
     "owners": ["<hex>", …],               personalization values
     "hash": "sha-256", "debug": false, "insecure": false, "cache": "any"}

The last four have these defaults. A measurement is always demanded: whoever is not a Realm's owner can still have an
image measured that claims to be its owner's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from vambrace.attest.claims import CACHE_PARTITIONS, HASH_BYTES
from vambrace.attest.policy import CACHE_DEMANDS, Policy
from vambrace.attest.token import decode_evidence
from vambrace.attest.verify import VerifiedRealm, verify_evidence
from vambrace.broker.platforms import Platform, Platforms
from vambrace.canonical import canonical
from vambrace.errors import ConfigError

MAX_MEASUREMENTS: Final = 64
MAX_OWNERS: Final = 16
OWNER_BYTES: Final = 64
CACHES: Final = ("any", *CACHE_DEMANDS)
PLATFORM_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_HINT: Final = "see 'The policy of a secret' in docs/broker.md"


@dataclass(frozen=True)
class ReleasePolicy:
    """Raises ``ConfigError`` where it would admit anything or nothing."""

    platform: str
    measurements: tuple[bytes, ...]
    owners: tuple[bytes, ...]
    hash: str = "sha-256"
    debug: bool = False
    insecure: bool = False
    cache: str = "any"

    def __post_init__(self) -> None:
        if self.hash not in HASH_BYTES:
            raise ConfigError(f"policy: hash {self.hash[:20]!a} is not known", hint=_HINT)
        if self.cache not in CACHES:
            raise ConfigError(f"policy: cache is one of {', '.join(CACHES)}", hint=_HINT)
        if not PLATFORM_NAME.fullmatch(self.platform):
            raise ConfigError("policy: platform is no name", hint=_HINT)
        _check_values(self.measurements, MAX_MEASUREMENTS, HASH_BYTES[self.hash], "measurements")
        _check_values(self.owners, MAX_OWNERS, OWNER_BYTES, "owners")

    @classmethod
    def parse(cls, value: Any) -> ReleasePolicy:
        """Read a policy's JSON object, whoever wrote it. Raises ``ConfigError``."""
        if not isinstance(value, dict):
            raise ConfigError("policy: an object is expected", hint=_HINT)
        known = {"platform": str, "hash": str, "debug": bool, "insecure": bool, "cache": str}
        given: dict[str, Any] = {}
        for key, item in value.items():
            if key in ("measurements", "owners"):
                given[key] = _read_values(item, key)
            elif key not in known:
                raise ConfigError(f"policy: {str(key)[:40]!a} is not known", hint=_HINT)
            elif type(item) is not known[key]:
                raise ConfigError(f"policy: {key} is of the wrong type", hint=_HINT)
            else:
                given[key] = item
        missing = [key for key in ("platform", "measurements", "owners") if key not in given]
        if missing:
            raise ConfigError(f"policy: {missing[0]} is missing", hint=_HINT)
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        return {
            "platform": self.platform,
            "measurements": [value.hex() for value in self.measurements],
            "owners": [value.hex() for value in self.owners],
            "hash": self.hash,
            "debug": self.debug,
            "insecure": self.insecure,
            "cache": self.cache,
        }

    def encode(self) -> bytes:
        """The one encoding, which is authenticated together with the secret."""
        return canonical(self.as_dict())

    def appraise(self, evidence: bytes, challenge: bytes, platforms: Platforms, now: datetime) -> VerifiedRealm:
        """The Realm that ``evidence`` shows, if it may have the secret. Raises ``VerificationError``, ``ConfigError``
        (the platform that is named is not configured any more)."""
        return _verify(
            evidence,
            challenge,
            platforms.get(self.platform, insecure=self.insecure),
            now,
            self.measurements,
            self.owners,
            Policy(
                allow_debug=self.debug,
                allow_insecure=self.insecure,
                hash_algorithm=self.hash,
                cache_partitions=CACHE_DEMANDS.get(self.cache, frozenset(CACHE_PARTITIONS)),
            ),
        )


def appraise_platform(evidence: bytes, challenge: bytes, platform: Platform, now: datetime) -> VerifiedRealm:
    """The Realm that ``evidence`` shows, if it is genuine, fresh and on ``platform``: of whatever image and owner.

    What it may have is for the policies to say. Raises ``VerificationError``.
    """
    realm = decode_evidence(evidence).realm
    policy = Policy(allow_debug=True, allow_insecure=platform.insecure, hash_algorithm=realm.hash_algorithm)
    return _verify(evidence, challenge, platform, now, (realm.measurement,), (realm.personalization,), policy)


def _verify(
    evidence: bytes,
    challenge: bytes,
    platform: Platform,
    now: datetime,
    measurements: Sequence[bytes],
    owners: Sequence[bytes],
    policy: Policy,
) -> VerifiedRealm:
    # What the token claims picks which of the expected values it is held to; the verifier then compares.
    claimed = decode_evidence(evidence).realm
    return verify_evidence(
        evidence,
        roots=platform.roots,
        references=platform.references,
        challenge=challenge,
        measurement=claimed.measurement if claimed.measurement in measurements else measurements[0],
        personalization=claimed.personalization if claimed.personalization in owners else owners[0],
        policy=policy,
        now=now,
    )


def _read_values(value: Any, what: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"policy: {what} is a list of hexadecimal texts", hint=_HINT)
    try:
        return tuple(bytes.fromhex(item) for item in value)
    except ValueError:
        raise ConfigError(f"policy: {what} is a list of hexadecimal texts", hint=_HINT) from None


def _check_values(values: tuple[bytes, ...], most: int, size: int, what: str) -> None:
    if not 1 <= len(values) <= most or len(set(values)) != len(values):
        raise ConfigError(f"policy: {what} has {len(values)} values", hint=f"1 to {most}, each once")
    if any(len(value) != size for value in values):
        raise ConfigError(f"policy: each of {what} has {size} bytes", hint=_HINT)
