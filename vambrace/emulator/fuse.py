"""The fuse of the emulated server: a block of its secure flash, of which firmware updates never touch a bit.

Layout and meaning: ``firmware/common/fuse_block.h``.
"""

from __future__ import annotations

import os
import secrets
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from vambrace.attest.policy import DEBUG, DECOMMISSIONED, NOT_PROVISIONED, SECURED, lifecycle_name
from vambrace.emulator.firmware import FLASH_SIZE
from vambrace.errors import ServerError

OFFSET = 0x03FF_0000
SIZE = 0x1000
KEY_SIZE = 16
HASH_SIZE = 32
MAGIC = b"VAMBFUSE"

#: struct fuse_block
_BLOCK: Final = struct.Struct("<8s16s16s24x4s4s4s20x32s128x64s64s")
_BLANK = b"\xff" * 4
_BLOWN = bytes(4)
_COUNTER_BITS: Final = 512
_NO_KEY = bytes(KEY_SIZE)


@dataclass(frozen=True)
class Fuse:
    """``key`` is the machine's hardware unique key (16 bytes), ``root_key_hash`` the SHA-256 (32) of the key that signs
    its firmware.

    ``secured``, ``debug`` and ``decommissioned`` are one-way bits of the life cycle; a decommissioned machine has no
    key. ``firmware_version`` and ``host_version`` are the oldest that may start.
    """

    key: bytes = field(repr=False)
    root_key_hash: bytes
    secured: bool = False
    debug: bool = False
    decommissioned: bool = False
    firmware_version: int = 0
    host_version: int = 0

    @property
    def lifecycle(self) -> int:
        """As the token states it."""
        if self.decommissioned:
            return DECOMMISSIONED
        if self.debug:
            return DEBUG
        return SECURED if self.secured else NOT_PROVISIONED

    def as_dict(self) -> dict[str, Any]:
        """A JSON-able rendering, without the key."""
        return {
            "lifecycle": lifecycle_name(self.lifecycle),
            "root-key-hash": self.root_key_hash.hex(),
            "firmware-version": self.firmware_version,
            "host-version": self.host_version,
        }

    @classmethod
    def generate(cls, root_key_hash: bytes) -> Fuse:
        """A new machine's: fresh key, not provisioned."""
        return cls(secrets.token_bytes(KEY_SIZE), root_key_hash)

    @classmethod
    def decode(cls, block: bytes) -> Fuse:
        """Raises ServerError where the firmware would refuse it, too: blank, damaged, or in no known state."""
        try:
            magic, key, check, *words, root_key_hash, firmware, host = _BLOCK.unpack_from(block)
            secured, debug, decommissioned = (_BIT[word] for word in words)
            fuse = cls(key, root_key_hash, secured, debug, decommissioned, _counter(firmware), _counter(host))
            good = len(block) == SIZE and magic == MAGIC and root_key_hash != b"\xff" * HASH_SIZE
            if decommissioned:
                good = good and key == check == _NO_KEY
            else:
                good = good and check == _complement(key) and key not in (_NO_KEY, b"\xff" * KEY_SIZE)
        except (struct.error, KeyError, ValueError):
            good = False
        if not good:
            raise ServerError(
                "the server's fuse is blank, damaged, or of an older vambrace",
                hint="'vambrace server reset' makes a new machine",
            )
        return fuse

    def encode(self) -> bytes:
        """The fuse block, ``SIZE`` bytes."""
        if len(self.key) != KEY_SIZE or len(self.root_key_hash) != HASH_SIZE:
            raise ValueError(f"a fuse has a key of {KEY_SIZE} bytes and a hash of {HASH_SIZE}")
        if self.decommissioned != (self.key == _NO_KEY):
            raise ValueError("a machine has a key until it is decommissioned")
        words = [_BLOWN if bit else _BLANK for bit in (self.secured, self.debug, self.decommissioned)]
        check = self.key if self.decommissioned else _complement(self.key)
        counters = [_burnt(value) for value in (self.firmware_version, self.host_version)]
        packed = _BLOCK.pack(MAGIC, self.key, check, *words, self.root_key_hash, *counters)
        block = bytearray(packed.ljust(SIZE, b"\xff"))
        for start, end in ((0x28, 0x40), (0x4C, 0x60), (0x80, 0x100)):
            block[start:end] = b"\xff" * (end - start)
        return bytes(block)

    def decommission(self) -> Fuse:
        """The same machine without its key."""
        return replace(self, key=_NO_KEY, decommissioned=True)


_BIT: Final = {_BLANK: False, _BLOWN: True}


def _burnt(value: int) -> bytes:
    """A counter in unary: ``value`` zeros from the first word's lowest bit up, ones behind them."""
    if not 0 <= value <= _COUNTER_BITS:
        raise ValueError(f"a fuse counts to {_COUNTER_BITS}")
    return ((1 << _COUNTER_BITS) - (1 << value)).to_bytes(_COUNTER_BITS // 8, "little")


def _counter(data: bytes) -> int:
    value = _COUNTER_BITS - int.from_bytes(data, "little").bit_count()
    if data != _burnt(value):
        raise ValueError("a counter with holes")
    return value


def read_fuse(flash: Path) -> Fuse:
    """The fuse in flash file ``flash``. Raises ServerError."""
    try:
        with flash.open("rb") as file:
            file.seek(OFFSET)
            return Fuse.decode(file.read(SIZE))
    except OSError as error:
        raise ServerError(f"the server's flash cannot be read: {error.strerror}") from error


def update_flash(flash: Path, firmware: Path, root_key_hash: bytes) -> None:
    """Put ``firmware`` (64 MiB image without a fuse) into ``flash``; keep the fuse there, or burn one in a new file.

    A new machine starts firmware of the key with ``root_key_hash`` and no other, for ever. The server must be stopped.
    Readable by its owner only: the fuse is the machine's identity. Raises ServerError.
    """
    fuse = read_fuse(flash) if flash.exists() else Fuse.generate(root_key_hash)
    if fuse.decommissioned:
        raise ServerError(
            "this machine is decommissioned: its keys are gone", hint="'vambrace server reset' makes a new machine"
        )
    if fuse.root_key_hash != root_key_hash:
        raise ServerError(
            "this machine takes firmware of another vendor's key only",
            hint="restore the vendor's keys; 'vambrace server reset' makes a new machine",
        )
    image = firmware.read_bytes()
    if len(image) != FLASH_SIZE:
        raise ServerError(f"{firmware} is not a flash image of {FLASH_SIZE >> 20} MiB")
    flash.parent.mkdir(parents=True, exist_ok=True)
    temporary = flash.with_name(flash.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # What is zero stays a hole: most of the flash is.
        step = 1 << 16
        for start in range(0, FLASH_SIZE, step):
            piece = image[start : start + step]
            if piece.strip(b"\0"):
                file.seek(start)
                file.write(piece)
        file.truncate(FLASH_SIZE)
        file.seek(OFFSET)
        file.write(fuse.encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(flash)


def _complement(key: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in key)
