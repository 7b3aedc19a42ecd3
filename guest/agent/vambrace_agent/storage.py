"""A file system on a disk that the host keeps: encrypted, and every block of it authenticated (docs/volumes.md).

    | header 1 MiB | A: tags and journal | B: tags and journal | data                                |

    ext4 ─ dm-crypt (AES-256-XTS) ─ dm-integrity (HMAC-SHA256 of ciphertext and place) ┬ data
                                                                                      └ dm-crypt ─ A or B

Only one of A and B is in use. What dm-integrity writes there is encrypted under a key of its own, so that who opens the
disk anew under another key makes everything that was there before worthless: a block of data that is put back as it was
has no tag any more. A block that was changed, or never written, is an I/O error.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os

from vambrace_agent import AgentError, programs
from vambrace_agent.devicemapper import SECTOR, Device, Forged
from vambrace_agent.opened import opened

MIB = 1 << 20
BLOCK = 4096
HEADER = MIB
TAG_BYTES = 32
MOST_JOURNAL = 4 * MIB  # the kernel keeps all of it in memory
LEAST = 32 * MIB
_CHUNK = MIB
_GROUP = 8 * BLOCK  # blocks that one of ext4's bitmaps tells of
_INODES = (32 << 10, 256 << 10)  # bytes for each: of small disks, and of large ones, whose making would take long


class Layout:
    """Where things are on a disk of ``size`` bytes, in bytes. Raises ``AgentError``: it is too small."""

    def __init__(self, size: int) -> None:
        if size < LEAST or size % MIB:
            raise AgentError(f"a disk of {size} bytes is too small, or no whole number of MiB")
        self.size = size
        self.journal = min(MOST_JOURNAL, size // 32 // MIB * MIB)
        tags = size // BLOCK * TAG_BYTES
        self.tags = -(-(BLOCK + self.journal + tags + MIB) // MIB) * MIB
        self.data = HEADER + 2 * self.tags
        self.data_size = size - self.data

    def tags_at(self, which: int) -> int:
        """The beginning of A (0) or B (1)."""
        return HEADER + which * self.tags


class Keys:
    """Of one disk, derived from its own key (32 bytes) and the random salt that it was made with."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self._key = key
        self.cipher = derive(key, salt, b"cipher", 64)
        self.tag = derive(key, salt, b"tag", 32)
        self.journal = derive(key, salt, b"journal", 32)
        self.header = derive(key, salt, b"header", 32)

    def tags(self, salt: bytes) -> bytes:
        """The key of A or B while ``salt`` is the salt of what is there."""
        return derive(self._key, salt, b"tags", 64)


def derive(key: bytes, salt: bytes, label: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869); ``label`` is one of this file's."""
    extracted = hmac.digest(salt, key, "sha256")
    found = block = b""
    while len(found) < length:
        counter = bytes([len(found) // 32 + 1])
        block = hmac.new(extracted, block + b"vambrace-volume-1 " + label + counter, hashlib.sha256).digest()
        found += block
    return found[:length]


class Stack:
    """The devices over one disk ``path``, named after ``name``. ``close`` ends them; what was written is below then."""

    def __init__(self, name: str, path: str, layout: Layout, keys: Keys) -> None:
        self.name = name
        self._path = path
        self._layout = layout
        self._keys = keys
        self._devices: list[Device] = []

    @property
    def path(self) -> str:
        """The device with the file system."""
        return self._devices[-1].path

    def make(self, which: int, salt: bytes, *, lasting: bool) -> None:
        """Set up the devices over A or B with nothing in it; what the disk had is worthless. ``lasting``: by way of a
        journal, so that blocks and their tags change together. Raises ``AgentError``: the kernel refuses."""
        tags = self._open_tags(which, salt)
        try:
            overwrite(tags.path, 0, BLOCK)  # dm-integrity begins anew where it finds zeros
        finally:
            tags.remove()
        self._set_up(which, salt, lasting=lasting)
        # The tools read these blocks before they write all of them.
        overwrite(self.path, 0, MIB)
        overwrite(self.path, self._layout.data_size - MIB, MIB)
        for block in superblock_copies(self._layout.data_size // BLOCK):
            overwrite(self.path, block * BLOCK, BLOCK)

    def open(self, which: int, salt: bytes) -> None:
        """What was made to last, over A or B, encrypted with ``salt``. Raises ``Forged``: it is not on the disk."""
        try:
            self._set_up(which, salt, lasting=True)
        except AgentError as error:
            raise Forged(str(error)) from None

    def _set_up(self, which: int, salt: bytes, *, lasting: bool) -> None:
        layout, keys = self._layout, self._keys
        sectors = layout.data_size // SECTOR
        try:
            tags = self._open_tags(which, salt)
            self._devices.append(tags)
            data = Device(f"{self.name}-data", sectors, "linear", f"{self._path} {layout.data // SECTOR}")
            self._devices.append(data)
            options = (
                f"meta_device:{tags.path}",
                f"block_size:{BLOCK}",
                f"journal_sectors:{layout.journal // SECTOR}",
                f"internal_hash:hmac(sha256):{keys.tag.hex()}",
                f"journal_mac:hmac(sha256):{keys.journal.hex()}",
                "fix_hmac",
            )
            mode = "J" if lasting else "D"
            table = f"{data.path} 0 - {mode} {len(options)} {' '.join(options)}"
            self._devices.append(Device(f"{self.name}-whole", sectors, "integrity", table))
            self._devices.append(_crypt(self.name, self._devices[-1].path, 0, sectors, keys.cipher))
        except BaseException:
            self.close()
            raise

    def renew(self, which: int, old: bytes, new: bytes) -> None:
        """Copy A to B or B to A, ``which`` being where it is now, encrypted with the salt ``new`` and no more ``old``;
        on the disk when this returns. What is copied does not change."""
        source = self._open_tags(which, old)
        try:
            target = self._open_tags(1 - which, new)
            try:
                copy(source.path, target.path, self._layout.tags)
            finally:
                target.remove()
        finally:
            source.remove()

    def close(self) -> None:
        """Raises ``AgentError``: something still uses it."""
        while self._devices:
            self._devices[-1].remove()
            self._devices.pop()

    def _open_tags(self, which: int, salt: bytes) -> Device:
        place, sectors = self._layout.tags_at(which) // SECTOR, self._layout.tags // SECTOR
        return _crypt(f"{self.name}-{'ab'[which]}", self._path, place, sectors, self._keys.tags(salt))


def _crypt(name: str, path: str, offset: int, sectors: int, key: bytes) -> Device:
    table = f"aes-xts-plain64 {key.hex()} 0 {path} {offset} 2 sector_size:{BLOCK} iv_large_sectors"
    return Device(name, sectors, "crypt", table)


def superblock_copies(blocks: int) -> list[int]:
    """Where ext4 on so many blocks has copies of its superblock, which fills the quarter of one: at the beginning of
    groups 1 and 3ⁿ, 5ⁿ, 7ⁿ (ext4(5), "sparse_super")."""
    groups = -(-blocks // _GROUP)
    found = {1}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return [group * _GROUP for group in sorted(found) if group < groups]


def make_file_system(path: str, size: int, *, lasting: bool) -> None:
    """ext4 on a disk of ``size`` bytes, all that it may read later included, on the disk when this returns.

    Raises ``AgentError``."""
    ratio = min(max(_INODES[0], size >> 16), _INODES[1])
    journal = [] if lasting else ["-O", "^has_journal"]
    initialised = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-m", "0", "-i", str(ratio)]
    if not programs.run([*command, "-E", initialised, *journal, path]):
        raise AgentError("no file system could be made")
    with opened(path) as fd:
        os.fsync(fd)


def overwrite(path: str, offset: int, length: int) -> None:
    """With zeros, on the disk when this returns."""
    write(path, offset, bytes(length))


def copy(source: str, target: str, length: int) -> None:
    """The first ``length`` bytes, on the disk when this returns. Raises ``OSError``."""
    with opened(source) as old, opened(target, os.O_WRONLY) as new:
        for offset in range(0, length, _CHUNK):
            data = os.pread(old, min(_CHUNK, length - offset), offset)
            if os.pwrite(new, data, offset) != min(_CHUNK, length - offset):
                raise OSError(errno.EIO, "it was cut short")
        os.fsync(new)


def read(path: str, offset: int, length: int) -> bytes:
    """Zeros stand for what is not there. Raises ``OSError``."""
    with opened(path) as fd:
        return os.pread(fd, length, offset).ljust(length, b"\0")


def write(path: str, offset: int, data: bytes) -> None:
    """On the disk, with all that was written before, when this returns. Raises ``OSError``."""
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
