"""Read-only disks: an EROFS image with its dm-verity hash tree behind it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from vambrace.debian import tools
from vambrace.errors import BuildError

BLOCK = 4096
# Fixed, so that the same tree gives the same bits; the salt only has to differ between kinds of tree.
_UUID = "76616d62-7261-6365-8000-000000000001"
_SALT = hashlib.sha256(b"vambrace-verity-salt-1").hexdigest()


@dataclass(frozen=True)
class VerityDisk:
    """A disk file: ``data_size`` bytes of EROFS, then the hash tree; hashes are hex, sizes bytes."""

    sha256: str
    size: int
    data_size: int
    verity_root: str
    verity_salt: str

    def mount_word(self, device: str, where: str) -> str:
        """The kernel command line's word that makes the initrd mount this disk (see initrd.sh)."""
        return f"vambrace.disk={device},{where},{self.data_size // BLOCK},{self.verity_root},{self.verity_salt}"


def make_erofs(tree: Path, out: Path) -> VerityDisk:
    """Pack ``tree`` into ``out``: all owned by root, all times zero, the same bits for the same tree.

    Raises BuildError, ToolMissing.
    """
    out.unlink(missing_ok=True)
    tools.run(
        [
            "mkfs.erofs",
            "--quiet",
            "-T",
            "0",
            "-U",
            _UUID,
            "--all-root",
            "-E",
            "force-inode-compact",
            out,
            tree,
        ]
    )
    return add_verity(out)


def add_verity(out: Path) -> VerityDisk:
    """Put its hash tree behind the file system in ``out``. Raises BuildError, ToolMissing."""
    data_size = -(-out.stat().st_size // BLOCK) * BLOCK
    with out.open("r+b") as file:
        file.truncate(data_size)
    report = tools.run(
        [
            "veritysetup",
            "format",
            "--no-superblock",
            "--format=1",
            "--hash=sha256",
            f"--data-block-size={BLOCK}",
            f"--hash-block-size={BLOCK}",
            f"--data-blocks={data_size // BLOCK}",
            f"--hash-offset={data_size}",
            f"--salt={_SALT}",
            out,
            out,
        ]
    )
    found = re.search(r"^Root hash:\s*([0-9a-f]{64})$", report, re.MULTILINE)
    if not found:
        raise BuildError("veritysetup printed no root hash")
    with out.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return VerityDisk(digest, out.stat().st_size, data_size, found[1], _SALT)
