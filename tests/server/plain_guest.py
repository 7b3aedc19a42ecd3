"""A Realm's kernel, initrd and base in plain QEMU, with a script in the agent's place: for what it does with disks.

No firmware, no host, no VMM: seconds instead of minutes. Nothing of it is attested.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vambrace.debian import tools
from vambrace.debian.erofs import make_erofs
from vambrace.image.base import RuntimeBase

INIT = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t tmpfs tmpfs /run
busybox mount -t tmpfs tmpfs /tmp
exec < /dev/ttyAMA0 > /dev/ttyAMA0 2>&1
PYTHONPATH=/usr/lib/vambrace/agent python3 -B /app/script.py
busybox poweroff -f
"""


class Guest:
    """``disks`` are files by their serial numbers, writable; ``script`` is run with the agent's modules at hand.
    ``nodes`` are MiB of memory, the first one's processor is the only one."""

    def __init__(
        self, folder: Path, base: RuntimeBase, script: Path, nodes: tuple[int, ...] = (768,), **disks: Path
    ) -> None:
        self._base = base
        self._nodes = nodes
        self._disks = disks
        tree = folder / "tree"
        tree.mkdir()
        shutil.copyfile(script, tree / "script.py")
        (tree / "init").write_text(INIT)
        (tree / "init").chmod(0o755)
        self._console = folder / "console.log"
        self._apps = folder / "apps.erofs"
        self._verity = make_erofs(tree, self._apps)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """In the end it is killed, as if its power were cut. ``said`` has what it has printed."""
        base = self._base
        self._console.write_bytes(b"")
        words = [
            "console=ttyAMA0 quiet loglevel=0 panic=-1 vambrace.storage",
            base.disk_info.mount_word("/dev/vda", "/"),
            self._verity.mount_word("/dev/vdb", "/app"),
            "vambrace.init=/app/init",
        ]
        command = [
            *(tools.find("qemu-system-aarch64"), "-M", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on"),
            *("-accel", "tcg", "-m", str(sum(self._nodes)), "-nodefaults", "-nographic", "-no-reboot"),
            *("-serial", f"file:{self._console}"),
            *("-kernel", str(base.kernel), "-initrd", str(base.initrd), "-append", " ".join(words)),
        ]
        for number, size in enumerate(self._nodes):
            node = f"node,nodeid={number},memdev=memory{number}{',cpus=0' if number == 0 else ''}"
            command += ["-object", f"memory-backend-ram,id=memory{number},size={size}M", "-numa", node]
        drives = [(base.disk, "base", "on"), (self._apps, "apps", "on")]
        drives += [(path, serial.replace("_", "-"), "off") for serial, path in self._disks.items()]
        for path, serial, fixed in reversed(drives):  # Linux finds the last one first
            command += [
                *("-drive", f"if=none,id={serial},file={path},format=raw,readonly={fixed}"),
                *("-device", f"virtio-blk-device,drive={serial},serial={serial}"),
            ]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self) -> None:
        """Until it has ended by itself."""
        with self.running() as process:
            process.wait(240)

    @property
    def said(self) -> list[tuple[str, str]]:
        """Its lines of a name, a colon and a text; the last one may be cut off, and is left out then."""
        *lines, _ = self._console.read_text(errors="replace").split("\n")
        return [(name, text.strip()) for name, colon, text in (line.partition(": ") for line in lines) if colon]
