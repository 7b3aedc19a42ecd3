"""Power cuts: disks that lose what nobody has flushed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vambrace.emulator import qemu

CLUSTER = 4096


class Volatile:
    """The disk in the file ``disk`` (raw), with a cache of its own that is lost when QEMU is killed.

    QEMU writes a file's bytes at once, and the machine's kernel has them: killing it loses nothing. So writes go into a
    file over the disk (qcow2), in which a block of ``CLUSTER`` bytes that was not there before is found by tables that
    stay in QEMU's memory until a flush. What a killed QEMU had not flushed is as it was, other than a block that was
    flushed before and written again, which is new: in any order, as a disk's cache would do it.
    """

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self.overlay = disk.with_name(f"{disk.name}.cache")

    def begin(self) -> None:
        """Make the file ``overlay`` (qcow2), for QEMU to use in the place of the disk."""
        # Unsafe is to believe that the disk is there.
        below = ["-u", "-b", self._disk.resolve(), "-F", "raw", "-o", f"cluster_size={CLUSTER}"]
        size = str(self._disk.stat().st_size)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, self.overlay, size], check=True)

    def insert(self, monitor: qemu.Monitor, device: str) -> None:
        """As ``begin``, for a machine that runs: its ``device`` has the disk."""
        self.begin()
        monitor.execute(
            "blockdev-snapshot-sync",
            device=device,
            mode="existing",
            format="qcow2",
            **{"snapshot-file": str(self.overlay.resolve())},
        )

    def settle(self) -> None:
        """QEMU is gone: the disk is what is left of it."""
        subprocess.run(["qemu-img", "commit", "-q", self.overlay], check=True)
        self.overlay.unlink()
