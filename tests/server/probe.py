"""A kernel module for the emulated host that reads physical memory; see ``module/probe.c``."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from vambrace.debian.kernel import Kernel

HERE = Path(__file__).parent


def build_probe(kernel: Kernel, folder: Path, address: int) -> bytes:
    """The module that reads the word at physical ``address``."""
    size, init = _layout(next(kernel.modules.rglob("vfat.ko")))
    out = folder / f"probe-{address:x}.ko"
    defines = [f"-DPROBE_ADDRESS={address:#x}UL", f'-DPROBE_NAME="probe_{address:x}"']
    defines += [f'-DMODULE_SIZE="{size}"', f'-DMODULE_INIT="{init}"']
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector", "-fno-pic"]
    flags += ["-mgeneral-regs-only", "-mbranch-protection=standard", "-fno-asynchronous-unwind-tables"]
    source = HERE / "module/probe.c"
    subprocess.run(["aarch64-linux-gnu-gcc", *flags, *defines, "-c", "-o", out, source], check=True)
    return out.read_bytes()


def _layout(module: Path) -> tuple[int, int]:
    """Size of this kernel's ``struct module``, and where in it the initializer is: from one of its modules."""
    section = ".gnu.linkonce.this_module"
    size = re.search(rf"{re.escape(section)}\s+PROGBITS\s+\S+\s+\S+\s+([0-9a-f]+)", _readelf("-WS", module))
    relocations = _readelf("-Wr", module).partition(f"'.rela{section}'")[2]
    relocation = re.search(r"^([0-9a-f]{16})\s+.*\sinit_module \+ 0$", relocations, re.MULTILINE)
    assert size and relocation
    return int(size[1], 16), int(relocation[1], 16)


def _readelf(option: str, file: Path) -> str:
    words = ["aarch64-linux-gnu-readelf", option, str(file)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
