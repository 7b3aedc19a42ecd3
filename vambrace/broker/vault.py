"""Encryption at rest. One master key, never in the database; a key of its own for each thing that is sealed.

AES-256-GCM (NIST SP 800-38D) under HKDF-SHA256(master, salt), the salt fresh each time, so that no nonce can repeat
under a key. What a secret is, and who may have it, is authenticated with it: a row that was changed, or put in another
one's place, does not open.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vambrace.errors import BrokerError, ConfigError
from vambrace.files import write_whole

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_SALT: Final = 32
_NONCE: Final = bytes(12)  # of a key that encrypts once
_TAG: Final = 16
_SECRET: Final = b"vambrace-broker-secret-1"
_AUDIT: Final = b"vambrace-broker-audit-1"


class Vault:
    """``master`` has 32 bytes."""

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise ConfigError(f"a master key has {KEY_BYTES} bytes", hint="'vambrace broker init' makes one")
        self._master = master
        self._audit = self._derive(_AUDIT, b"")

    @classmethod
    def load(cls, path: Path) -> Vault:
        """Read the key file (hexadecimal). Raises ``ConfigError``, also where others can read it."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise ConfigError(f"{path} is open to others", hint="chmod 600, and think about who has read it")
                text = file.read(4 * KEY_BYTES)
        except OSError as error:
            raise ConfigError(f"the master key {path}: {error.strerror}", hint="restore it from a backup") from None
        try:
            return cls(bytes.fromhex(text.decode("ascii").strip()))
        except ValueError:
            raise ConfigError(f"the master key {path} is damaged", hint="restore it from a backup") from None

    @staticmethod
    def create(path: Path) -> None:
        """Make a key file. Raises ``ConfigError`` if there is one."""
        try:
            write_whole(path, os.urandom(KEY_BYTES).hex().encode() + b"\n", replace=False)
        except FileExistsError:
            raise ConfigError(f"{path} is there already", hint="keys are never overwritten") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", hint="choose another folder") from None

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Version, salt, ciphertext and tag. ``context`` is authenticated and not stored."""
        salt = os.urandom(_SALT)
        return _VERSION + salt + AESGCM(self._derive(_SECRET, salt)).encrypt(_NONCE, plaintext, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises ``BrokerError``: not sealed with this key, or changed, or of another context."""
        salt, ciphertext = sealed[1 : 1 + _SALT], sealed[1 + _SALT :]
        if sealed[:1] == _VERSION and len(ciphertext) >= _TAG:
            try:
                return AESGCM(self._derive(_SECRET, salt)).decrypt(_NONCE, ciphertext, context)
            except InvalidTag:
                pass
        raise BrokerError(
            "what the database holds was changed, or is of another master key",
            hint="restore database and key from one backup",
        )

    def tag(self, data: bytes) -> bytes:
        """An authenticator (32 bytes) for the audit log."""
        return hmac.digest(self._audit, data, "sha256")

    def tags(self, data: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is that of ``data``."""
        return hmac.compare_digest(self.tag(data), tag)

    def _derive(self, label: bytes, salt: bytes) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt=salt, info=label).derive(self._master)
