"""The fuse of the emulated server: a block of its secure flash, of which firmware updates never touch a bit.

Layout: ``firmware/common/vambrace_platform.h``.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from vambrace.emulator.firmware import FLASH_SIZE
from vambrace.errors import ServerError

OFFSET = 0x03FF_0000
SIZE = 0x1000
KEY_SIZE = 16
MAGIC = b"VAMBFUSE"

_LIFECYCLE = slice(0x40, 0x44)
_BLANK = b"\xff" * 4
_BLOWN = bytes(4)


@dataclass(frozen=True)
class Fuse:
    """``key`` is the machine's hardware unique key (16 bytes); ``secured`` is the life cycle's one-way bit."""

    key: bytes = field(repr=False)
    secured: bool = False

    @classmethod
    def generate(cls) -> Fuse:
        """A new machine's: fresh key, not provisioned."""
        return cls(secrets.token_bytes(KEY_SIZE))

    @classmethod
    def decode(cls, block: bytes) -> Fuse:
        """Raises ServerError where the firmware would refuse it, too: blank, damaged, or in no known state."""
        key, check = block[8 : 8 + KEY_SIZE], block[0x18 : 0x18 + KEY_SIZE]
        lifecycle = block[_LIFECYCLE]
        good = len(block) == SIZE and block[:8] == MAGIC and check == _complement(key)
        if not good or key in (bytes(KEY_SIZE), b"\xff" * KEY_SIZE) or lifecycle not in (_BLANK, _BLOWN):
            raise ServerError(
                "the server's fuse is blank or damaged", hint="'vambrace server reset' makes a new machine"
            )
        return cls(key, lifecycle == _BLOWN)

    def encode(self) -> bytes:
        """The fuse block, ``SIZE`` bytes."""
        if len(self.key) != KEY_SIZE:
            raise ValueError(f"a fuse key has {KEY_SIZE} bytes")
        block = bytearray(b"\xff" * SIZE)
        block[:8] = MAGIC
        block[8 : 8 + KEY_SIZE] = self.key
        block[0x18 : 0x18 + KEY_SIZE] = _complement(self.key)
        block[_LIFECYCLE] = _BLOWN if self.secured else _BLANK
        return bytes(block)


def read_fuse(flash: Path) -> Fuse:
    """The fuse in flash file ``flash``. Raises ServerError."""
    try:
        with flash.open("rb") as file:
            file.seek(OFFSET)
            return Fuse.decode(file.read(SIZE))
    except OSError as error:
        raise ServerError(f"the server's flash cannot be read: {error.strerror}") from error


def update_flash(flash: Path, firmware: Path) -> None:
    """Put ``firmware`` (64 MiB image without a fuse) into ``flash``; keep the fuse there, or burn one in a new file.

    The server must be stopped. Readable by its owner only: the fuse is the machine's identity. Raises ServerError.
    """
    fuse = read_fuse(flash) if flash.exists() else Fuse.generate()
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
