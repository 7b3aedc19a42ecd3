"""Disks whose files only a Realm reads that its broker has given their key (docs/volumes.md).

The file system and its hash tree are made first, and all of it is encrypted then: AES-256-XTS, sectors of 4096 bytes,
their number as the tweak, which is dm-crypt's ``aes-xts-plain64`` with ``iv_large_sectors``. So the measured root hash
is that of what is read, and another key does not go unseen. Everybody may read the root hash: behind the file system is
a block that only the key gives, so that nobody finds out by it whether a guess of the files is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from vambrace.debian.erofs import BLOCK, VerityDisk, add_verity
from vambrace.errors import BuildError

KEY_BYTES = 64  # two keys of AES-256
_SECRET_BLOCK = b"vambrace-encrypted-disk-1"


def obtain_key(path: Path) -> bytes:
    """The key in ``path``; a new one is made where there is none, so that the same files give the same image again.

    Raises ``BuildError``: it is no key, or others may read it.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise BuildError(f"{path} is open to others", hint=f"chmod 600 {path}, if nobody has read it")
        key = file.read(KEY_BYTES + 1)
        if len(key) != KEY_BYTES or key[:32] == key[32:]:
            raise BuildError(f"{path} holds no key of {KEY_BYTES} bytes", hint="move it away, and a new one is made")
        return key
    key = os.urandom(KEY_BYTES)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def encrypt_disk(path: Path, disk: VerityDisk, key: bytes) -> VerityDisk:
    """Encrypt the file ``path`` of ``disk`` in its place; what it is then, one block larger, and its tree another.

    Raises ``OSError``, ``BuildError``.
    """
    with path.open("r+b") as file:
        file.truncate(disk.data_size)
        file.seek(disk.data_size)
        file.write(hmac.digest(key, _SECRET_BLOCK, "sha256").ljust(BLOCK, b"\0"))
    disk = add_verity(path)
    digest = hashlib.sha256()
    algorithm = algorithms.AES(key)
    with path.open("r+b") as file:
        for number in range(disk.size // BLOCK):
            block = file.read(BLOCK)
            encryptor = Cipher(algorithm, modes.XTS(number.to_bytes(16, "little"))).encryptor()
            text = encryptor.update(block) + encryptor.finalize()
            digest.update(text)
            file.seek(number * BLOCK)
            file.write(text)
    return replace(disk, sha256=digest.hexdigest())
