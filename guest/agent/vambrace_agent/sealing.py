"""Data that only this Realm's kind can open again, on this machine (docs/broker.md).

The monitor gives keys to Realms by what they were measured as. A sealed text is 1, the version of the image (32 bits,
big-endian), salt (32 bytes), then ciphertext and tag of AES-256-GCM under a key that is its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable

from vambrace_agent import AgentError
from vambrace_agent.libcrypto import IV_BYTES, TAG_BYTES, decrypt, encrypt

MAX_DATA = 32 << 10
FORMAT = 1
HEADER = struct.Struct(">BI32s")
_LABEL = b"vambrace-seal-1"
_IV = bytes(IV_BYTES)  # of a key that encrypts once

#: The monitor's key for what a version of this image has sealed; raises ``AgentError``.
Key = Callable[[int], bytes]


class Sealing:
    """``version`` is this image's own, None where it seals nothing."""

    def __init__(self, version: int | None, key: Key) -> None:
        self._version = version
        self._key = key

    def seal(self, application: str, data: bytes) -> bytes:
        """Raises ``AgentError``."""
        if len(data) > MAX_DATA:
            raise AgentError(f"at most {MAX_DATA} bytes are sealed at a time")
        header = HEADER.pack(FORMAT, self._own_version(), os.urandom(32))
        return header + encrypt(self._derive(application, header), _IV, data, header)

    def unseal(self, application: str, sealed: bytes) -> bytes:
        """What the same application has sealed, in this version of the image or an older one. Raises ``AgentError``."""
        if not HEADER.size + TAG_BYTES <= len(sealed) <= HEADER.size + TAG_BYTES + MAX_DATA or sealed[0] != FORMAT:
            raise AgentError("this is nothing that was sealed")
        header, text = sealed[: HEADER.size], sealed[HEADER.size :]
        if HEADER.unpack(header)[1] > self._own_version():
            raise AgentError("this was sealed by a newer version of the image")
        key = self._derive(application, header)
        try:
            return decrypt(key, _IV, text[:-TAG_BYTES], text[-TAG_BYTES:], header)
        except AgentError:
            raise AgentError("this was sealed by somebody else, on another machine or host, or was changed") from None

    def _own_version(self) -> int:
        if self._version is None:
            raise AgentError("this Realm seals nothing")
        return self._version

    def _derive(self, application: str, header: bytes) -> bytes:
        """HKDF-SHA256 (RFC 5869), one block; the salt is in the header."""
        _, version, salt = HEADER.unpack(header)
        extracted = hmac.digest(salt, self._key(version), "sha256")
        return hmac.new(extracted, _LABEL + application.encode() + b"\x01", hashlib.sha256).digest()
