"""What tokens are bound to (docs/architecture.md, section 7): 64 bytes each."""

from __future__ import annotations

from typing import Final

from vambrace.errors import UsageError
from vambrace.suite import NIST, Suite

NONCE_BYTES: Final = 32
INSTANCE_BYTES: Final = 16
THUMBPRINT_BYTES: Final = 32


def launch_challenge(nonce: bytes, instance: bytes, suite: Suite = NIST) -> bytes:
    """Binds the token before the first instruction to the user's nonce and the new instance."""
    return suite.wide_digest(b"vambrace-launch-1" + _nonce(nonce) + _instance(instance))


def channel_challenge(nonce: bytes, spki: bytes, instance: bytes, suite: Suite = NIST) -> bytes:
    """Binds a token to a TLS session: ``spki`` is the DER SubjectPublicKeyInfo of the server's key."""
    key = suite.digest(spki)
    return suite.wide_digest(b"vambrace-channel-1" + _nonce(nonce) + key + _instance(instance))


def release_challenge(nonce: bytes, thumbprint: bytes, instance: bytes, suite: Suite = NIST) -> bytes:
    """Binds a token to a broker's ``nonce`` and the key that a secret is to be encrypted to.

    ``thumbprint`` is that of the key's JWK (RFC 7638, SHA-256).
    """
    if len(thumbprint) != THUMBPRINT_BYTES:
        raise UsageError(f"a thumbprint has {THUMBPRINT_BYTES} bytes, not {len(thumbprint)}")
    return suite.wide_digest(b"vambrace-release-1" + _nonce(nonce) + thumbprint + _instance(instance))


# Fixed lengths make the concatenations above unambiguous.
def _nonce(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise UsageError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return nonce


def _instance(instance: bytes) -> bytes:
    if len(instance) != INSTANCE_BYTES:
        raise UsageError(f"an instance has {INSTANCE_BYTES} bytes, not {len(instance)}")
    return instance
