"""A Realm's kernel, initrd and base in plain QEMU, with a script in the agent's place: for what it does with disks.

No firmware, no host, no VMM: seconds instead of minutes. Nothing of it is attested.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from volatile import Volatile

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
PYTHONPATH=/usr/lib/vambrace/agent python3 -B /app/scripts/{script}
busybox poweroff -f
"""
#: Its address in QEMU's own network.
ADDRESS = "10.0.2.15"


class Guest:
    """``disks`` are files by their serial numbers, writable; ``script`` is run with the agent's modules at hand, and
    those of its own folder. ``nodes`` are MiB of memory, the first one's processor is the only one.

    ``settings`` are those of an image, for the script; ``images`` its disks behind base and applications. ``forward``
    is a port of this machine's loopback and the one of ``ADDRESS`` that it leads to: there is a network card then.
    """

    def __init__(
        self,
        folder: Path,
        base: RuntimeBase,
        script: Path,
        nodes: tuple[int, ...] = (768,),
        *,
        settings: bytes = b"{}",
        images: Sequence[Path] = (),
        forward: tuple[int, int] | None = None,
        **disks: Path,
    ) -> None:
        self._base = base
        self._nodes = nodes
        self._images = images
        self._forward = forward
        self._disks = disks
        tree = folder / "tree"
        shutil.copytree(script.parent, tree / "scripts")
        (tree / "vambrace.json").write_bytes(settings)
        (tree / "init").write_text(INIT.format(script=script.name))
        (tree / "init").chmod(0o755)
        self._console = folder / "console.log"
        self._apps = folder / "apps.erofs"
        self._verity = make_erofs(tree, self._apps)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """In the end it is killed, as if its power were cut: what it has not flushed is lost. ``said`` has what it has
        printed."""
        self._console.write_bytes(b"")
        disks = {serial: Volatile(path) for serial, path in self._disks.items()}
        for disk in disks.values():
            disk.begin()
        command = self._command({serial: disk.overlay for serial, disk in disks.items()})
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for disk in disks.values():
                disk.settle()

    def _command(self, disks: dict[str, Path]) -> list[str]:
        base = self._base
        words = [
            "console=ttyAMA0 quiet loglevel=0 panic=-1 vambrace.storage",
            base.disk_info.mount_word("/dev/vda", "/"),
            self._verity.mount_word("/dev/vdb", "/app"),
            "vambrace.init=/app/init",
            *(["vambrace.network"] if self._forward else []),
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
        fixed = [(base.disk, "base"), (self._apps, "apps")]
        fixed += [(path, f"image-{number}") for number, path in enumerate(self._images)]
        drives = [(path, serial, "raw,readonly=on") for path, serial in fixed]
        drives += [(path, serial.replace("_", "-"), "qcow2") for serial, path in disks.items()]
        for path, serial, kind in reversed(drives):  # Linux finds the last one first
            command += [
                *("-drive", f"if=none,id={serial},file={path},format={kind}"),
                *("-device", f"virtio-blk-device,drive={serial},serial={serial}"),
            ]
        if self._forward:
            ours, its = self._forward
            command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ours}-{ADDRESS}:{its}"]
            command += ["-device", "virtio-net-device,netdev=net"]
        return command

    def run(self) -> None:
        """Until it has ended by itself."""
        with self.running() as process:
            process.wait(240)

    @property
    def said(self) -> list[tuple[str, str]]:
        """Its lines of a name, a colon and a text; the last one may be cut off, and is left out then."""
        *lines, _ = self._console.read_text(errors="replace").split("\n")
        return [(name, text.strip()) for name, colon, text in (line.partition(": ") for line in lines) if colon]


def sparse(path: Path, size: int) -> Path:
    """A new disk of zeros."""
    with path.open("xb") as file:
        file.truncate(size)
    return path
