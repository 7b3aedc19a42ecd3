"""Java archives: a JAR that names its main class, and a virtual machine that keeps to a small zone."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vambrace.errors import ConfigError
from vambrace.image import zips

#: What runs archives where the manifest names no other package with a Java runtime.
PACKAGE: Final = "openjdk-21-jre-headless"
RUNTIMES: Final = ("openjdk-", "default-jre", "default-jdk", "temurin-")
_MAX_MANIFEST: Final = 1 << 20
_MAIN = re.compile(r"^Main-Class:\s*\S", re.MULTILINE)


@dataclass(frozen=True)
class JavaArchive:
    """The file at ``path``, run with further ``options`` of the virtual machine and the program's own ``arguments``."""

    path: Path
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def command(self, memory: int) -> tuple[str, ...]:
        """How it runs in a zone of ``memory`` bytes; an option of its own overrules one of these."""
        return ("java", *machine_options(memory), *self.options, "-jar", self.path.name, *self.arguments)

    def packages(self, named: tuple[str, ...]) -> tuple[str, ...]:
        """The packages ``named`` in the manifest, with a Java runtime."""
        return named if any(name.startswith(RUNTIMES) for name in named) else (*named, PACKAGE)

    def check(self) -> None:
        """Raises ``ConfigError`` where ``java -jar`` could not start it."""
        what, hint = f"{self.path} is no Java archive", "a .jar file with a manifest"
        try:
            with (
                zips.reading(what, hint),
                zipfile.ZipFile(self.path) as archive,
                archive.open("META-INF/MANIFEST.MF") as file,
            ):
                manifest = file.read(_MAX_MANIFEST).decode(errors="replace")
        except OSError:
            raise ConfigError(what, hint=hint) from None
        if not _MAIN.search(manifest):
            raise ConfigError(f"{self.path} names no Main-Class", hint="'jar --create --main-class NAME' writes one")


def machine_options(memory: int) -> tuple[str, ...]:
    """Half of the zone for the heap; the rest is for classes, code, stacks and the program's files. The collector is
    the one with the fewest structures and threads of its own."""
    mebibytes = memory >> 20
    return (
        "-XX:+UseSerialGC",
        f"-Xmx{max(8, mebibytes // 2)}m",
        "-Xss512k",
        f"-XX:ReservedCodeCacheSize={min(240, max(16, mebibytes // 8))}m",
        "-XX:-UsePerfData",
    )
