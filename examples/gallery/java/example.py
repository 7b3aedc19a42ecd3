"""A service in Java, asked by curl."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Final

from examples.gallery.exhibit import Address, Service
from examples.gallery.load import run_client
from vambrace.debian import tools
from vambrace.errors import VambraceError

NUMBERS: Final = 40  # a round, over one connection
JAVA: Final = 17  # what the class files are for, so that any runtime from then on takes them


class JavaService(Service):
    form = "Java"
    port = 8080
    program = "curl"
    first = 1_000_000

    def prepare(self) -> None:
        make_archive(self.stage.source / "Service.java", self.stage.source / "service.jar")

    def ask(self, address: Address) -> None:
        check_factors(self._factors(address, 84, 84), 84, 84)

    def do_round(self, address: Address) -> int:
        first, self.first = self.first, self.first + NUMBERS
        check_factors(self._factors(address, first, self.first - 1), first, self.first - 1)
        return NUMBERS

    def _factors(self, address: Address, first: int, last: int) -> str:
        url = f"http://{address[0]}:{address[1]}/factors/[{first}-{last}]"
        return run_client(["curl", "--silent", "--show-error", "--fail", url])


def make_archive(source: Path, out: Path) -> None:
    """Compile ``source`` and pack its classes, the same bits each time. Raises ``BuildError``, ``ToolMissing``."""
    classes = out.with_suffix(".classes")
    tools.run(["javac", "--release", str(JAVA), "-d", classes, source])
    with zipfile.ZipFile(out, "w") as archive:  # whose entries have the date of 1980 unless told otherwise
        archive.writestr(zipfile.ZipInfo("META-INF/MANIFEST.MF"), f"Manifest-Version: 1.0\nMain-Class: {source.stem}\n")
        for path in sorted(classes.glob("*.class")):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())


def check_factors(said: str, first: int, last: int) -> None:
    """Raises ``VambraceError`` unless ``said`` has the prime factors of each number from ``first`` to ``last``."""
    lines = said.splitlines()
    if len(lines) != last - first + 1:
        raise VambraceError(f"{len(lines)} answers to {last - first + 1} questions")
    for number, line in zip(range(first, last + 1), lines, strict=True):
        if not re.fullmatch(rf"{number} =( \d+)+", line):
            raise VambraceError(f"{line[:100]!r} is no answer to {number}")
        factors = [int(word) for word in line.split()[2:]]
        if math.prod(factors) != number or not all(map(_prime, factors)):
            raise VambraceError(f"these are not the prime factors: {line[:100]!r}")


def _prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


EXHIBIT = JavaService
