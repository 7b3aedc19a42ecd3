"""Whether what an application's command names can run in the guest: told when it is built, not when it fails there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from vambrace.application import Application
from vambrace.debian.configure import inside, resolve
from vambrace.debian.elf import LIBRARY_FOLDERS, read_elf
from vambrace.errors import ConfigError

#: As the agent has it for a program whose environment does not say otherwise (vambrace_agent.confine).
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_MAX_LIBRARIES: Final = 500


@dataclass(frozen=True)
class Surroundings:
    """What ``application`` will see: the system in ``tree`` and its own ``files`` in their place."""

    application: Application
    tree: Path
    files: Path

    @property
    def mounts(self) -> dict[str, Path]:
        return {f"/app/{self.application.name}": self.files}

    def find(self, path: str) -> Path | None:
        """The file of this machine that is at ``path`` there."""
        return inside(self.tree, self._whole(path), self.mounts)

    def origin(self, path: str) -> str:
        """The folder that the program at ``path`` is in, once no link is left: its $ORIGIN (ld.so(8))."""
        return str(PurePosixPath(resolve(self.tree, self._whole(path), self.mounts) or path).parent)

    def _whole(self, path: str) -> str:
        return str(PurePosixPath(self.application.directory, path))

    def place(self, program: str) -> str | None:
        """Where a command finds ``program``."""
        if "/" in program:
            return program if self.find(program) else None
        folders = self.application.environment.get("PATH", DEFAULT_PATH).split(":")
        return next((f"{each}/{program}" for each in folders if self.find(f"{each}/{program}")), None)

    def folders(self) -> list[str]:
        """Where the dynamic linker looks for libraries, beside what a program says itself."""
        own = self.application.environment.get("LD_LIBRARY_PATH", "").split(":")
        configured = []
        for file in sorted((self.tree / "etc/ld.so.conf.d").glob("*.conf")):
            configured += [line.strip() for line in file.read_text(errors="replace").splitlines()]
        return [each for each in (*own, *configured) if each.startswith("/")] + list(LIBRARY_FOLDERS)


def check_program(application: Application, tree: Path, files: Path) -> None:
    """Raises ``ConfigError`` if the command's program is not there, not executable, for another processor, or lacks a
    library or interpreter; ``tree`` is the base's system, ``files`` the application's folder as it will be."""
    around = Surroundings(application, tree, files)
    try:
        _check(application.command[0], around, scripts=2)
    except ConfigError as error:
        raise ConfigError(f"application {application.name}: {error.message}", hint=error.hint) from None


def _check(program: str, around: Surroundings, *, scripts: int) -> None:
    place = around.place(program)
    found = around.find(place) if place else None
    if place is None or found is None or not found.is_file():
        raise ConfigError(
            f"{program[:80]}: no such program in the image",
            hint="put it into files, or name Debian's package that has it in packages",
        )
    if not found.stat().st_mode & 0o111:
        raise ConfigError(f"{program[:80]} is not executable", hint="chmod +x, or name its interpreter first")
    with found.open("rb") as file:
        start = file.read(256)
    if start.startswith(b"#!"):
        words = start[2:].split(b"\n")[0].decode(errors="replace").split()
        if not words or not scripts:
            raise ConfigError(f"{program[:80]}: its first line names no interpreter", hint="for example #!/bin/sh")
        _check(words[0], around, scripts=scripts - 1)
        if words[0].endswith("/env") and len(words) == 2:
            _check(words[1], around, scripts=scripts - 1)
    elif start.startswith(b"\x7fELF"):
        _check_libraries(program, found, around.origin(place), around)
    else:
        raise ConfigError(f"{program[:80]} is neither a program nor a script", hint="an arm64 ELF file, or #! first")


def _check_libraries(program: str, found: Path, origin: str, around: Surroundings) -> None:
    """All libraries that are needed, and those that they need."""
    todo, seen = [(found, origin)], {""}
    while todo:
        file, origin = todo.pop()
        needed = read_elf(file)
        if needed.linker is not None and around.find(needed.linker) is None:
            raise ConfigError(
                f"{program[:80]} needs the dynamic linker {needed.linker[:80]}, which the image does not have",
                hint="link it statically, or against Debian's libc",
            )
        folders = [each.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for each in needed.folders]
        for name in needed.libraries:
            if name in seen or len(seen) > _MAX_LIBRARIES:
                continue
            seen.add(name)
            places = [f"{folder}/{name}" for folder in (*folders, *around.folders())]
            place = next((each for each in places if around.find(each)), None)
            library = around.find(place) if place else None
            if place is None or library is None:
                raise ConfigError(
                    f"{program[:80]} needs the library {name[:80]}, which the image does not have",
                    hint="name Debian's package that has it in packages, or link it statically",
                )
            todo.append((library, str(PurePosixPath(place).parent)))
