"""The page key of one run: made here, where it is used, and gone when this process exits."""

from __future__ import annotations

import hmac
import os

INFO = b"vambrace-page-key-1"
PAGE_KEY_BYTES = 32


def page_key(share: bytes, instance: bytes, digest: str = "sha256") -> bytes:
    """A fresh key (32 bytes) from TrustZone's ``share`` and the kernel's generator: either alone suffices.

    HKDF (RFC 5869) without a salt, over ``digest`` (hashlib's name, 32 bytes); one block of output is enough.
    """
    secret = hmac.digest(bytes(PAGE_KEY_BYTES), share + os.urandom(PAGE_KEY_BYTES), digest)
    return hmac.digest(secret, INFO + instance + b"\x01", digest)
