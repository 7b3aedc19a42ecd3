"""Zip archives of strangers: wheels and JARs."""

from __future__ import annotations

import errno
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vambrace.errors import ConfigError

MAX_UNPACKED: Final = 8 << 30  # bytes: a part of an image has no more
MAX_FILES: Final = 200_000
#: What reading a damaged one raises, beside ``OSError``.
_DAMAGED: Final = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(RuntimeError, ValueError, KeyError, AssertionError),
)


@contextmanager
def reading(what: str, hint: str) -> Iterator[None]:
    """Raises ``ConfigError``, that it is not ``what``, for whatever a damaged archive raises."""
    try:
        yield
    except _DAMAGED as error:
        raise ConfigError(f"{what}: {str(error)[:200]}", hint=hint) from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a place that cannot be is none of the disk's troubles
            raise
        raise ConfigError(f"{what}: it is damaged", hint=hint) from None


def check_size(path: Path) -> None:
    """Raises ``ConfigError`` for an archive that unpacks to too much, and what ``zipfile`` raises for none.

    More than the sizes that it states is never read of it.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_UNPACKED:
        raise ConfigError(
            f"{path.name} unpacks to too much", hint=f"at most {MAX_UNPACKED >> 30} GiB, and {MAX_FILES} files"
        )
