"""A machine's physical memory in a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vambrace.emulator import qemu
from vambrace.errors import ServerError


def dump_memory(directory: Path, path: Path) -> int:
    """Write the physical memory of the machine in ``directory`` to ``path``; the number of bytes.

    A part of it is not left behind. Raises ``ServerError``.
    """
    if qemu.running(directory) is None:
        raise ServerError("the server is not running", hint="start it with 'vambrace server up'")
    size = qemu.RAM_MIB << 20
    try:
        if shutil.disk_usage(path.parent).free < size:
            raise ServerError(f"no space for {size >> 20} MiB in {path.parent}", hint="name another disk")
        path.unlink(missing_ok=True)
        # A file of our own: it holds the keys of all Realms.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise ServerError(f"{path} cannot be written: {error.strerror}", hint="name another file") from error
    try:
        with qemu.Monitor(directory / "qmp.sock", timeout=300) as monitor:
            monitor.execute("pmemsave", val=qemu.RAM_BASE, size=size, filename=str(path.resolve()))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path.stat().st_size
