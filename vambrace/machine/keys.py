"""The page key of one run: made here, where it is used, and gone when this process exits."""

from __future__ import annotations

import hashlib
import hmac
import os

INFO = b"vambrace-page-key-1"
BYTES = 32


def page_key(share: bytes, instance: bytes) -> bytes:
    """A fresh key (32 bytes) from TrustZone's ``share`` and the kernel's generator: either alone suffices.

    HKDF-SHA256 (RFC 5869) without a salt; one block of output is enough.
    """
    secret = hmac.digest(bytes(BYTES), share + os.urandom(BYTES), hashlib.sha256)
    return hmac.digest(secret, INFO + instance + b"\x01", hashlib.sha256)
