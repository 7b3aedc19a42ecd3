"""Python projects: what they require is resolved once for the guest, recorded with hashes, and put into a virtual
environment of the image, from wheels alone: nothing is compiled, and no code of a package runs, while building.

The index, its certificates and credentials are those of the machine's own pip configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.exceptions import InstallerError
from installer.sources import WheelFile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vambrace.debian import root, tools
from vambrace.debian.cache import Cache
from vambrace.errors import BuildError, ConfigError
from vambrace.image import pip_alone, zips
from vambrace.image.programs import DEFAULT_PATH
from vambrace.image.requirements import Wanted, Wheel, closure, guest_markers, plain, read_requirements

#: The environment's folder in the application's.
FOLDER: Final = ".venv"
_GLIBC_MINOR: Final = 41  # of Debian 13, which the guest is
_ROUNDS: Final = 10
_PIN = re.compile(r"([a-z0-9][a-z0-9-]*)==([A-Za-z0-9.!+_-]+) --hash=sha256:([0-9a-f]{64})")
_NO_WHEEL = re.compile(r"No matching distribution found for (\S.*)")
_NO_ANSWER = "Retrying (Retry("


@dataclass(frozen=True)
class Guest:
    """The guest's Python: its ``version`` (3.13), and the ``tree`` of the system that it is in."""

    version: str
    tree: Path

    @classmethod
    def of(cls, tree: Path) -> Guest:
        """That of the runtime base in ``tree``. Raises ``BuildError``."""
        return cls(root.python_interpreter(tree).name.removeprefix("python"), tree)

    @property
    def options(self) -> list[str]:
        """What makes pip choose for the guest."""
        tags = [f"manylinux_2_{minor}_aarch64" for minor in range(_GLIBC_MINOR, 16, -1)]
        platforms = [*tags, "manylinux2014_aarch64", "linux_aarch64"]
        abis = [f"cp{self.version.replace('.', '')}", "abi3", "none"]
        chosen = [word for platform in platforms for word in ("--platform", platform)]
        chosen += [word for abi in abis for word in ("--abi", abi)]
        return [*chosen, "--implementation", "cp", "--python-version", self.version, "--only-binary", ":all:"]


def lock_path(manifest: Path, application: str) -> Path:
    """Where the requirements of ``application`` are recorded: beside ``manifest``."""
    return manifest.with_suffix(f".{application}.requirements.lock")


def environment_of(application: str) -> dict[str, str]:
    """The environment variables with which ``application`` finds its virtual environment."""
    place = f"/app/{application}/{FOLDER}"
    return {"VIRTUAL_ENV": place, "PATH": f"{place}/bin:{DEFAULT_PATH}"}


def locked_wheels(requirements: Path, lock: Path, guest: Guest, *, newer: bool = False) -> list[Wheel]:
    """The wheels for the file ``requirements``, as recorded in ``lock``; resolved and recorded if they are not, if the
    file has changed since, or if ``newer`` ones are wanted. Raises ``ConfigError``, ``BuildError``.
    """
    wanted = read_requirements(requirements, guest_markers(guest.version))
    stamp = _stamp(wanted, guest)
    if lock.exists() and not newer:
        recorded, wheels = _read_lock(lock)
        if recorded == stamp:
            return wheels
    wheels = _resolve(wanted, guest)
    temporary = lock.with_name(lock.name + ".tmp")
    pins = "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
    temporary.unlink(missing_ok=True)  # which may be a link, in a stranger's project
    head = f"# Wheels for arm64 and Python {guest.version}, as 'vambrace image build' took them; --newer renews them.\n"
    with temporary.open("x") as file:
        file.write(f"{head}# {stamp}\n{pins}")
    temporary.rename(lock)
    return wheels


def environment(wheels: Sequence[Wheel], application: str, guest: Guest, cache: Cache) -> Path:
    """A virtual environment of ``wheels`` for /app/``application``/.venv, built if the cache does not have it.

    Raises ``ConfigError``, ``BuildError``.
    """
    place = f"/app/{application}/{FOLDER}"
    pins = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in wheels]
    compiler = hashlib.sha256(root.python_interpreter(guest.tree).read_bytes()).hexdigest()
    inputs = {"wheels": "\n".join(pins), "place": place, "python": compiler, "recipe": "1"}

    def build(work: Path) -> None:
        files: list[Path] = []
        if pins:
            (work / "requirements").write_text("\n".join(pins) + "\n")
            _pip("download", "--no-deps", "--require-hashes", "-r", work / "requirements", "-d", work, *guest.options)
            (work / "requirements").unlink()
            files = sorted(work.glob("*.whl"))
        tree = work / "tree"
        _lay_out(tree, guest)
        for file in files:
            _install(file, tree, place, guest)
            file.unlink()
        root.compile_modules(guest.tree, tree, place)
        for path in tree.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)

    return cache.build("python-environment", inputs, build) / "tree"


def _stamp(wanted: Sequence[Wanted], guest: Guest) -> str:
    lines = sorted(f"{each.requirement} {' '.join(sorted(each.hashes))}" for each in wanted)
    digest = hashlib.sha256("\n".join([guest.version, *lines]).encode()).hexdigest()
    return f"requirements: sha256:{digest}"


def _read_lock(lock: Path) -> tuple[str, list[Wheel]]:
    hint = "restore it, or delete it"
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise BuildError(f"{lock} cannot be read", hint=hint) from None
    matches = [_PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    wheels = [Wheel(*match.groups()) for match in matches if match]
    if len(wheels) != len(matches):
        raise BuildError(f"{lock} is no lock of requirements", hint=hint)
    return (lines[1].removeprefix("# ") if len(lines) > 1 else ""), wheels


def _resolve(wanted: Sequence[Wanted], guest: Guest) -> list[Wheel]:
    """What pip chooses for ``wanted``, corrected by what the guest's markers say, until both agree."""
    markers = guest_markers(guest.version)
    asked = [plain(each.requirement) for each in wanted]
    for _ in range(_ROUNDS):
        wheels = _choose(asked, guest) if asked else {}
        needed, missing = closure(wanted, wheels, markers)
        if not missing:
            _check_hashes(wanted, wheels)
            return needed
        new = [text for text in map(plain, missing) if text not in asked]
        if not new:
            raise ConfigError(f"no wheel meets {plain(missing[0])}", hint="choose other versions")
        asked += new
    raise ConfigError("the requirements lead to no end of others", hint="name versions of more of them")


def _check_hashes(wanted: Sequence[Wanted], wheels: dict[str, Wheel]) -> None:
    for each in wanted:
        if each.hashes and wheels[each.name].sha256 not in each.hashes:
            raise ConfigError(
                f"{each.name} {wheels[each.name].version}: its arm64 wheel has none of the hashes in the requirements",
                hint="record those of all platforms, or none",
            )


def _choose(asked: Sequence[str], guest: Guest) -> dict[str, Wheel]:
    """pip's choice, by canonical name."""
    with tempfile.TemporaryDirectory(prefix="vambrace-") as folder:
        place = Path(folder)
        (place / "requirements").write_text("\n".join(asked) + "\n")
        report = place / "report.json"
        words: list[str | Path] = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", report]
        _pip(*words, "--target", place / "none", "-r", place / "requirements", *guest.options)
        chosen = json.loads(report.read_text())["install"]
    wheels = [_wheel(item) for item in chosen]
    return {wheel.name: wheel for wheel in wheels}


def _wheel(item: dict[str, Any]) -> Wheel:
    metadata = item["metadata"]
    archive = item["download_info"].get("archive_info", {})
    digest = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BuildError(f"pip gives no SHA-256 of {metadata['name']}", hint="use a newer pip")
    return Wheel(canonicalize_name(metadata["name"]), metadata["version"], digest, metadata.get("requires_dist", ()))


def _pip(*arguments: str | Path) -> None:
    # -P: what lies in the present folder is not pip, whatever its name.
    command: list[str | Path] = [sys.executable, "-P", Path(pip_alone.__file__), "--no-input"]
    command += ["--disable-pip-version-check", *arguments]
    try:
        # Limits on what this machine installs are not the guest's.
        tools.run(command, env={"PIP_CONSTRAINT": os.devnull, "PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"})
    except BuildError as error:
        raise _explained(error) from None


def _explained(error: BuildError) -> BuildError | ConfigError:
    text = error.message
    if "No module named pip" in text:
        return BuildError("this Python has no pip", hint=f"{sys.executable} -m ensurepip")
    if pip_alone.REFUSAL in text:
        return ConfigError(
            "a wheel requires something by its URL that would have to be built", hint="require a wheel of it instead"
        )
    unknown = _NO_WHEEL.search(text)
    if unknown and _NO_ANSWER not in text:
        name = Requirement(unknown[1].split(" (from")[0].split(" --hash")[0]).name
        return ConfigError(
            f"there is no wheel of {unknown[1][:80]} for arm64 and the guest's Python",
            hint=f"another version, or Debian's package: packages: [python3-{name.lower()}]",
        )
    if "ResolutionImpossible" in text:
        first = next((line for line in text.splitlines() if "Cannot install" in line), "the requirements conflict")
        return ConfigError(first.removeprefix("ERROR: "), hint="choose versions that go together")
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in text:
        return BuildError("a wheel does not have its recorded hash", hint="somebody changed it, or the lock")
    return error


def _lay_out(tree: Path, guest: Guest) -> None:
    """An environment as ``python3 -m venv`` makes it, around the guest's Python and what Debian's packages bring."""
    (tree / f"lib/python{guest.version}/site-packages").mkdir(parents=True)
    (tree / "bin").mkdir()
    for name in ("python", "python3", f"python{guest.version}"):
        (tree / "bin" / name).symlink_to("/usr/bin/python3")
    (tree / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = true\nversion = {guest.version}\n"
    )


def _install(wheel: Path, tree: Path, place: str, guest: Guest) -> None:
    """Unpack ``wheel`` into the environment at ``tree``, which will be at ``place``."""
    packages = str(tree / f"lib/python{guest.version}/site-packages")
    scheme = {"purelib": packages, "platlib": packages, "scripts": str(tree / "bin"), "data": str(tree)}
    scheme["headers"] = str(tree / "include")
    # Some wheels share a file, such as the licence at the top.
    destination = SchemeDictionaryDestination(scheme, f"{place}/bin/python3", "posix", overwrite_existing=True)
    with zips.reading(f"{wheel.name} is no good wheel", "choose another version"):
        zips.check_size(wheel)
        try:
            with WheelFile.open(wheel) as source:
                install(source, destination, additional_metadata={"INSTALLER": b"vambrace\n"})
        except InstallerError as error:
            raise ValueError(str(error)) from None
