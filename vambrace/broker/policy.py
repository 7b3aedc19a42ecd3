"""Who may have a secret: a policy of the verifier's (``vambrace.attest.policy``), for one of the broker's platforms.

It is bound to its secret and names images, never any: whoever is not a Realm's owner can still have an image measured
that claims to be its owner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from vambrace.attest.appraisal import Appraisal, appraise
from vambrace.attest.policy import Policy
from vambrace.attest.token import decode_evidence
from vambrace.attest.verify import accepted
from vambrace.broker.platforms import Platform, Platforms
from vambrace.canonical import canonical
from vambrace.errors import ConfigError

MAX_MEASUREMENTS: Final = 64
_HINT: Final = "see 'The policy of a secret' in docs/broker.md"


@dataclass(frozen=True)
class ReleasePolicy:
    """``platform`` is a name of the broker's settings. Raises ``ConfigError`` for a policy that admits every image, or
    none."""

    platform: str
    policy: Policy

    def __post_init__(self) -> None:
        measurements = self.policy.measurements
        if not measurements or len(measurements) > MAX_MEASUREMENTS:
            raise ConfigError(
                "policy: it must say which images may have the secret",
                hint=f"realm.measurements, 1 to {MAX_MEASUREMENTS} of them",
            )

    @classmethod
    def parse(cls, platform: Any, table: Any) -> ReleasePolicy:
        """Read the name of a platform and a policy's table, whoever wrote them. Raises ``ConfigError``."""
        if not isinstance(platform, str) or not isinstance(table, Mapping):
            raise ConfigError("policy: a platform's name and an object are expected", hint=_HINT)
        return cls(platform, Policy.from_table(table))

    def as_dict(self) -> dict[str, Any]:
        return {"platform": self.platform, "policy": self.policy.table()}

    def encode(self) -> bytes:
        """The one encoding, which is authenticated together with the secret."""
        return canonical(self.as_dict())

    def admit(self, evidence: bytes, challenge: bytes, platforms: Platforms, now: datetime) -> None:
        """Return if the Realm that ``evidence`` shows may have the secret. Raises ``VerificationError``,
        ``ConfigError`` (the platform that is named is not configured any more)."""
        anchors = platforms.get(self.platform, insecure=self.policy.allow_insecure).anchors
        accepted(appraise(evidence, anchors=anchors, policy=self.policy, challenge=challenge, now=now))


def appraise_platform(evidence: bytes, challenge: bytes, platform: Platform, now: datetime) -> Appraisal:
    """Evidence of a Realm that is genuine, fresh and on ``platform``: of whatever image and owner.

    What it may have is for the policies to say. Raises ``VerificationError``.
    """
    algorithm = decode_evidence(evidence).realm.hash_algorithm
    policy = Policy(
        identifier="tag:vambrace.dev,2026:broker/platform",
        allow_debug=True,
        allow_insecure=platform.insecure,
        measurements=None,
        hash_algorithm=algorithm,
    )
    appraisal = appraise(evidence, anchors=platform.anchors, policy=policy, challenge=challenge, now=now)
    accepted(appraisal)
    return appraisal
