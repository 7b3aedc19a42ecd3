"""The emulated board's device tree, as QEMU draws it, completed with what the host boots with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fdt

from vambrace.debian import tools
from vambrace.emulator import firmware, qemu
from vambrace.errors import BuildError


def make(out: Path, cmdline: str, initrd_size: int) -> None:
    """Write the device tree that the stub pins. ``initrd_size`` is in bytes. Raises BuildError."""
    raw = out.with_suffix(".raw")
    tools.run([qemu.program(), *_dump_options(raw), "-display", "none", "-nodefaults"])
    tree = fdt.parse_dtb(raw.read_bytes())
    raw.unlink()
    chosen = tree.get_node("/chosen")
    chosen.set_property("bootargs", cmdline)
    start = firmware.INITRD_ADDRESS
    for name, value in (("linux,initrd-start", start), ("linux,initrd-end", start + initrd_size)):
        chosen.set_property(name, [value >> 32, value & 0xFFFF_FFFF])
    firmware.describe_secure_world(tree)
    out.write_bytes(tree.to_dtb())


def qemu_version() -> str:
    """QEMU's version line: another version may draw another device tree."""
    return subprocess.run(
        [qemu.program(), "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]


def _dump_options(raw: Path) -> list[str]:
    options = qemu.base_options(secure=True)
    try:
        board = options.index("-machine") + 1
    except ValueError:
        raise BuildError("QEMU's options name no machine") from None
    options[board] += f",dumpdtb={raw}"
    # With firmware present QEMU leaves out what firmware would describe itself; any file will do here.
    return [*options, "-bios", "/dev/null"]
