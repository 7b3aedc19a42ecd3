"""What an arm64 ELF file needs of others to run (System V ABI, "Dynamic Linking"), and where that is."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from vambrace.errors import BuildError, ConfigError

#: Where Debian's dynamic linker looks, beside what a program says itself.
LIBRARY_FOLDERS: Final = ("/usr/lib/aarch64-linux-gnu", "/usr/lib")
_LINKER: Final = "ld-linux-aarch64.so.1"
_MACHINES: Final = {"EM_X86_64": "x86-64", "EM_386": "32-bit x86", "EM_ARM": "32-bit Arm", "EM_RISCV": "RISC-V"}
_DAMAGED = (
    *(ELFError, ConstructError, struct.error),
    *(ValueError, LookupError, AssertionError, AttributeError, TypeError, ArithmeticError, OSError, MemoryError),
)


@dataclass(frozen=True)
class Dependencies:
    """What an arm64 ELF file wants of others: its dynamic linker, libraries, and folders to look for those in."""

    linker: str | None
    libraries: tuple[str, ...]
    folders: tuple[str, ...]


def read_elf(path: Path) -> Dependencies:
    """What the file at ``path`` needs. Raises ``ConfigError`` where it is no ELF file for arm64."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            machine, kind = elf["e_machine"], elf["e_type"]
            if machine != "EM_AARCH64" or elf.elfclass != 64 or not elf.little_endian:
                name = _MACHINES.get(machine, str(machine)[:20])
                raise ConfigError(f"{path.name} is for {name}", hint="build it for arm64 (aarch64)")
            if kind not in ("ET_EXEC", "ET_DYN"):
                raise ConfigError(f"{path.name} is an ELF file that does not run", hint="link it to a program")
            return _dependencies(elf)
    except _DAMAGED:
        raise ConfigError(f"{path.name} is a damaged ELF file", hint="build it again, for arm64") from None


def libraries(tree: Path, program: Path) -> list[Path]:
    """The shared libraries in ``tree`` that ``program`` needs, and those that they need, dynamic linker included; by
    their sonames. Raises ``BuildError``."""
    found: dict[str, Path] = {}
    waiting = [program]
    folders = [tree / folder.lstrip("/") for folder in LIBRARY_FOLDERS]
    while waiting:
        try:
            needed = read_elf(waiting.pop()).libraries
        except ConfigError as error:
            raise BuildError(f"{program.name} of Debian's packages: {error.message}") from None
        for name in needed:
            if name in found:
                continue
            path = next((folder / name for folder in folders if (folder / name).exists()), None)
            if path is None:
                raise BuildError(f"{program.name} needs {name}, which no package brought")
            found[name] = path
            waiting.append(path)
    found.setdefault(_LINKER, next(f / _LINKER for f in reversed(folders) if (f / _LINKER).exists()))
    return [path for _, path in sorted(found.items())]


def _dependencies(elf: Any) -> Dependencies:
    linker, names, folders = None, [], []
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            linker = segment.get_interp_name()
    for segment in elf.iter_segments("PT_DYNAMIC"):
        for tag in segment.iter_tags():
            if tag.entry.d_tag == "DT_NEEDED":
                names.append(tag.needed)
            elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                value = tag.runpath if tag.entry.d_tag == "DT_RUNPATH" else tag.rpath
                folders += [each for each in value.split(":") if each]
    return Dependencies(linker, tuple(names), tuple(folders))
