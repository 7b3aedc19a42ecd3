"""Where the audit log ends, kept apart from the database: a database that was put back as a whole is older than that.

A file with two places that are written in turn, so that one is whole whenever the power goes. Each has the number of
entries (64 bits, big-endian), the last one's hash and an authenticator, 32 bytes each. A broker has its own alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from vambrace.broker.audit import OLD, Head
from vambrace.broker.vault import Vault
from vambrace.errors import BrokerError, ConfigError
from vambrace.files import sync

_PLACE: Final = struct.Struct(">Q32s32s")
_APART: Final = 4096  # no two in one sector of a disk
_LABEL: Final = b"anchor"


class Anchor:
    """The file at ``path``, of this process alone as long as this context manager is open.

    Raises ``ConfigError`` where it cannot be made or another broker has it; every method ``BrokerError``.
    """

    def __init__(self, path: Path, vault: Vault) -> None:
        self._path = path
        self._vault = vault
        self._next = 0
        new = not path.exists()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if new:
                sync(path.parent)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            hint = "stop it first, or give each an anchor of its own in broker.toml"
            raise ConfigError(f"another broker has the anchor {path}", hint=hint) from None

    def __enter__(self) -> Anchor:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self) -> Head | None:
        """What was kept last, None where nothing ever was. Raises also where it was changed, or is of another key."""
        head, place = _newest(self._file, self._path, self._vault)
        self._next = 1 - place
        return head

    def restart(self, head: Head) -> None:
        """Forget what was kept, and keep this: of a database that was restored."""
        self.keep(head)
        self.keep(head)

    def keep(self, head: Head) -> None:
        """When this returns it is on the disk."""
        data = _PLACE.pack(head.sequence, head.hash, self._vault.tag(_LABEL + head.authenticated()))
        try:
            if os.pwrite(self._file, data, self._next * _APART) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._file)
        except OSError as error:
            what = f"the anchor {self._path} cannot be written: {error.strerror}"
            raise BrokerError(what, hint="look at its disk", status=503) from None
        self._next = 1 - self._next


def read_anchor(path: Path, vault: Vault) -> Head | None:
    """As ``Anchor.read``, beside a broker that has it. Raises ``BrokerError``, ``ConfigError``."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        return _newest(file, path, vault)[0]
    finally:
        os.close(file)


def _newest(file: int, path: Path, vault: Vault) -> tuple[Head | None, int]:
    """The head that is farther, and its place."""
    found = [(head, place) for place in (0, 1) if (head := _read(file, place, vault))]
    if not found and os.fstat(file).st_size:
        raise BrokerError(f"the anchor {path} is not what this broker wrote", hint=OLD)
    return max(found, key=lambda each: each[0].sequence, default=(None, 1))


def _read(file: int, place: int, vault: Vault) -> Head | None:
    data = os.pread(file, _PLACE.size, place * _APART)
    if len(data) != _PLACE.size:
        return None
    sequence, digest, tag = _PLACE.unpack(data)
    head = Head(sequence, digest)
    return head if vault.tags(_LABEL + head.authenticated(), tag) else None


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the anchor {path}: {error.strerror}", hint="see anchor in broker.toml")
