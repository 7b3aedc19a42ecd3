"""What identifies one run of a Realm, and TrustZone's share of its page key."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

INSTANCE = 16
SHARE = 32


@dataclass(frozen=True)
class RunKeys:
    """``instance`` (16 bytes) is public. ``share`` (32 bytes) is for the VMM, which mixes in its own random
    bytes: the page key is never in this process, whose heap outlives the Realm."""

    instance: bytes
    share: bytes = field(repr=False)


def fresh_keys(trustzone_random: bytes) -> RunKeys:
    """From ``trustzone_random`` (64 bytes). The instance comes from this kernel's generator too."""
    if len(trustzone_random) != 2 * SHARE:
        raise ValueError("TrustZone gave another amount of randomness than asked for")
    material = trustzone_random[SHARE:] + os.urandom(SHARE)
    derivation = HKDF(algorithm=SHA256(), length=INSTANCE, salt=None, info=b"vambrace-instance-1")
    return RunKeys(derivation.derive(material), trustzone_random[:SHARE])
