"""How an appraisal is told: the trustworthiness vector of AR4SI (draft-ietf-rats-ar4si, section 2.3)."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, NamedTuple

from vambrace.errors import VerificationError

#: The two attesters of a token; an attestation result has a part for each, under this name.
PLATFORM: Final = "platform"
REALM: Final = "realm"


class Claim(enum.IntEnum):
    """The claims of the vector, by their keys in CBOR; ``label`` is the key in JSON."""

    INSTANCE_IDENTITY = 0
    CONFIGURATION = 1
    EXECUTABLES = 2
    FILE_SYSTEM = 3
    HARDWARE = 4
    RUNTIME_OPAQUE = 5
    STORAGE_OPAQUE = 6
    SOURCED_DATA = 7

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class Tier(enum.IntEnum):
    """Trustworthiness tiers (section 3.2), by their code points."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96

    @property
    def label(self) -> str:
        return self.name.lower()


# Values of claims; what each means depends on its claim (section 2.3.4).
GOOD: Final = 2  # recognized, approved, genuine, opaque
APPROVED_AT_BOOT: Final = 3  # of executables
DOUBTFUL: Final = 32  # known weakness; of the run time: isolated, but not opaque to the host
UNRECOGNIZED_CODE: Final = 33
BAD: Final = 96
UNRECOGNIZED: Final = 97
CRYPTO_FAILED: Final = 99


def tier(value: int) -> Tier:
    """The tier of a claim's value, -128 to 127 (section 2.3.1)."""
    magnitude = value if value >= 0 else -value - 1
    if magnitude >= Tier.CONTRAINDICATED:
        return Tier.CONTRAINDICATED
    if magnitude >= Tier.WARNING:
        return Tier.WARNING
    return Tier.AFFIRMING if magnitude >= Tier.AFFIRMING or value < -1 else Tier.NONE


class Finding(NamedTuple):
    """What one check found: a value for one claim of one attester, and why. ``error`` is what refuses the evidence."""

    attester: str
    claim: Claim
    value: int
    reason: str
    error: VerificationError | None = None


def vector(findings: Iterable[Finding]) -> dict[Claim, int]:
    """The worst value for each claim that ``findings`` speak about."""
    worst: dict[Claim, int] = {}
    for finding in findings:
        known = worst.get(finding.claim)
        if known is None or (tier(finding.value), finding.value) > (tier(known), known):
            worst[finding.claim] = finding.value
    return dict(sorted(worst.items()))


def status(findings: Iterable[Finding]) -> Tier:
    """The tier of an attester: that of its worst claim, and contraindicated for all that was refused."""
    findings = tuple(findings)
    if any(finding.error for finding in findings):
        return Tier.CONTRAINDICATED
    return max((tier(value) for value in vector(findings).values()), default=Tier.NONE)
