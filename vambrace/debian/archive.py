"""Debian's archive through an apt configuration of our own: resolve, lock, download, unpack.

What was resolved once is recorded (name, version, path in the archive, SHA-256), so that a later build takes the
same bits, or says which of them the archive no longer has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vambrace.debian import tools
from vambrace.errors import BuildError, NoSpace

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
STABLE = "trixie"
UNSTABLE = "sid"
ARCHITECTURE = "arm64"
APT_HELPER = "/usr/lib/apt/apt-helper"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>\S*)$")


@dataclass(frozen=True, order=True)
class Package:
    """One file of the archive: ``path`` is below the mirror's root, ``sha256`` is hex."""

    name: str
    version: str
    path: str
    sha256: str


def _sound(package: Package) -> Package:
    """``package`` of a lock, which a stranger may have written. Raises ``ValueError``, ``TypeError``."""
    if not _SHA256.fullmatch(package.sha256) or ".." in package.path.split("/"):
        raise ValueError
    return package


def mirror() -> str:
    """The mirror's root, from VAMBRACE_DEBIAN_MIRROR or from the machine's own apt sources.

    Raises BuildError where neither names one.
    """
    configured = os.environ.get("VAMBRACE_DEBIAN_MIRROR")
    if configured:
        return configured.rstrip("/")
    sources = Path("/etc/apt")
    texts = [
        file.read_text(errors="replace")
        for file in (sources / "sources.list", *sorted((sources / "sources.list.d").glob("*")))
        if file.is_file() and file.suffix in {".list", ".sources"}
    ]
    for text in texts:
        for line in text.splitlines():
            if line.lstrip().startswith("#"):
                continue
            for word in line.split():
                if re.match(r"^[a-z+]+://", word) and word.rstrip("/").endswith("/debian"):
                    return word.rstrip("/")
    raise BuildError(
        "no Debian mirror in the machine's apt sources",
        hint="set VAMBRACE_DEBIAN_MIRROR to the URL of a Debian mirror (the one that ends in /debian)",
    )


class Archive:
    """The archive as seen from ``directory`` (private apt state, lists and downloads), under ``lock_file``.

    ``newer`` resolves everything afresh and rewrites the lock.
    """

    def __init__(self, directory: Path, lock_file: Path, *, newer: bool = False) -> None:
        self.directory = directory
        self.downloads = directory / "files"
        self.downloads.mkdir(parents=True, exist_ok=True)
        self.lock_file = lock_file
        self.newer = newer
        self._lock: dict[str, list[Package]] = {}
        self._updated = False
        if lock_file.exists():
            try:
                for group, entries in json.loads(lock_file.read_text()).items():
                    self._lock[group] = [_sound(Package(**entry)) for entry in entries]
            except (ValueError, TypeError, AttributeError):
                raise BuildError(f"{lock_file} is no lock of packages", hint="restore it, or delete it") from None
        self._resolved_now: set[str] = set()

    def binaries(self, group: str, names: Sequence[str]) -> list[Package]:
        """``names`` (arm64) and all that they depend on, as locked under ``group``, resolved if not locked yet."""
        return self._locked(group, names, lambda: self._resolve_binaries(names))

    def only_binaries(self, group: str, names: Sequence[str]) -> list[Package]:
        """As ``binaries``, in a lock that has this group and no other."""
        if group not in self._lock:
            self._lock.clear()
        found = self.binaries(group, names)
        missing = sorted(set(names) - {package.name for package in found})
        if missing:
            raise BuildError(f"{missing[0]} is a virtual package", hint="name one that provides it")
        return found

    def source(self, group: str, name: str, suite: str = STABLE) -> list[Package]:
        """The files of source package ``name``."""
        return self._locked(group, [name], lambda: self._resolve_source(name, suite))

    def fetch(self, packages: Sequence[Package]) -> list[Path]:
        """Download what is not here yet, check hashes. Raises BuildError naming what the archive no longer has."""
        return [self._fetch_one(package) for package in packages]

    def unpack_source(self, packages: Sequence[Package], target: Path) -> Path:
        """Unpack a source package into ``target`` and return it."""
        with tempfile.TemporaryDirectory(dir=self.directory) as together:
            for file in self.fetch(packages):
                (Path(together) / file.name).symlink_to(file)
            description = next(Path(together).glob("*.dsc"))
            tools.run(["dpkg-source", "--no-check", "-x", description, target])
        return target

    @staticmethod
    def key(packages: Sequence[Package]) -> str:
        """One hash (hex) for a list of packages."""
        return hashlib.sha256("\n".join(f"{p.path} {p.sha256}" for p in packages).encode()).hexdigest()

    def _locked(self, group: str, names: Sequence[str], resolve: object) -> list[Package]:
        wanted = set(names)
        known = self._lock.get(group)
        fresh = self.newer and group not in self._resolved_now
        if known is not None and not fresh and wanted <= {package.name for package in known}:
            return known
        assert callable(resolve)
        packages: list[Package] = sorted(resolve())
        self._lock[group] = packages
        self._resolved_now.add(group)
        self._save()
        return packages

    def _save(self) -> None:
        text = json.dumps(
            {group: [asdict(p) for p in packages] for group, packages in sorted(self._lock.items())}, indent=1
        )
        temporary = self.lock_file.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)  # which may be a link, in a stranger's project
        with temporary.open("x") as file:
            file.write(text + "\n")
        temporary.rename(self.lock_file)

    def _apt(self, *arguments: str) -> str:
        with self._alone():
            environment = {"APT_CONFIG": str(self._configure())}
            if not self._updated:
                tools.run(["apt-get", "update"], env=environment, log=self.directory / "update.log")
                self._updated = True
            return tools.run(["apt-get", *arguments], env=environment)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Another build of this user may be at the same state and the same downloads."""
        with (self.directory / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _configure(self) -> Path:
        root = self.directory.resolve()
        for part in ("etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
            (root / part).mkdir(parents=True, exist_ok=True)
        if not KEYRING.exists():
            raise BuildError("Debian's archive keys are not installed", hint="install debian-archive-keyring")
        signed = f"signed-by={KEYRING}"
        # A mirror may lag behind with unstable, its Release file past its date; what is built from it is pinned by
        # the lock's hashes.
        (root / "sources.list").write_text(
            f"deb [arch={ARCHITECTURE} {signed}] {mirror()} {STABLE} main\n"
            f"deb-src [{signed}] {mirror()} {STABLE} main\n"
            f"deb-src [{signed} check-valid-until=no] {mirror()} {UNSTABLE} main\n"
        )
        (root / "status").touch()
        configuration = root / "apt.conf"
        configuration.write_text(
            f'Dir::Etc::sourcelist "{root}/sources.list";\n'
            f'Dir::Etc::sourceparts "-";\nDir::Etc::preferencesparts "{root}/etc/preferences.d";\n'
            f'Dir::State "{root}/state";\nDir::State::status "{root}/status";\n'
            f'Dir::Cache "{root}/cache";\nAPT::Architecture "{ARCHITECTURE}";\n'
            f'APT::Architectures {{ "{ARCHITECTURE}"; }};\n'
            'Acquire::ForceHash "SHA256";\n'
            'APT::Install-Recommends "false";\nAcquire::Languages "none";\n'
            'APT::Sandbox::User "root";\nAPT::Get::Assume-Yes "true";\n'
        )
        return configuration

    def _resolve_binaries(self, names: Sequence[str]) -> list[Package]:
        return self._parse(self._apt("install", "--print-uris", *names))

    def _resolve_source(self, name: str, suite: str) -> list[Package]:
        found = self._parse(self._apt("source", "--print-uris", f"{name}/{suite}"))
        # The group must be found again under the name that was asked for.
        return [Package(name, package.version, package.path, package.sha256) for package in found]

    def _parse(self, output: str) -> list[Package]:
        packages = []
        root = urlsplit(mirror()).path.rstrip("/") + "/"
        for line in output.splitlines():
            match = _URI_LINE.match(line)
            if not match:
                continue
            path = unquote(urlsplit(match["uri"]).path)
            algorithm, _, value = match["hash"].partition(":")
            if not path.startswith(root) or algorithm != "SHA256":
                raise BuildError(f"the archive's answer is not understood: {line}")
            name, version = (unquote(match["file"]).split("_") + [""])[:2]
            packages.append(Package(name, version, path.removeprefix(root), value))
        if not packages:
            raise BuildError("the archive resolved to no package at all", hint=f"see {self.directory}/update.log")
        return packages

    def _fetch_one(self, package: Package) -> Path:
        target = self.downloads / package.sha256[:16] / Path(package.path).name
        if target.exists():
            return target
        with self._alone():
            return target if target.exists() else self._download(package, target)

    def _download(self, package: Package, target: Path) -> Path:
        target.parent.mkdir(exist_ok=True)
        partial = target.with_suffix(target.suffix + ".part")
        try:
            tools.run(
                [
                    APT_HELPER,
                    "download-file",
                    f"{mirror()}/{package.path}",
                    partial,
                    f"SHA256:{package.sha256}",
                ]
            )
        except NoSpace:
            raise
        except BuildError as error:
            raise BuildError(
                f"the archive does not give {package.name} {package.version}: {error.message.splitlines()[-1]}",
                hint="it may have a newer one by now: the same command with --newer takes it and records it",
            ) from error
        if hashlib.sha256(partial.read_bytes()).hexdigest() != package.sha256:
            partial.unlink()
            raise BuildError(f"{package.path} does not have its recorded hash", hint="try another mirror")
        partial.rename(target)
        return target
