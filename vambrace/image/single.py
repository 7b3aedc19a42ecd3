"""A Realm of one container, program or disk, from a command line: the manifest that one would have written for it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vambrace.errors import ConfigError
from vambrace.image.containers.source import reference


@dataclass(frozen=True)
class Files:
    """A program of files: the folder, file or Java archive at ``path``, its command's ``words`` (a Java archive's
    arguments), the ``packages`` of Debian that it needs, and the file of its Python ``requirements``."""

    path: Path
    words: Sequence[str] = ()
    packages: Sequence[str] = ()
    requirements: Path | None = None

    def entries(self) -> dict[str, Any]:
        """What a manifest says of it, with absolute paths. Raises ``ConfigError``."""
        path = str(self.path.resolve())
        found: dict[str, Any] = {"packages": list(self.packages)}
        if self.requirements:
            found["python"] = {"requirements": str(self.requirements.resolve())}
        if self.path.suffix == ".jar":
            return found | {"java": {"archive": path, "arguments": list(self.words)} if self.words else path}
        if self.path.is_dir():
            if not self.words:
                raise ConfigError(f"{self.path} is a folder", hint="say what runs in it: -- COMMAND…")
            return found | {"files": path, "command": list(self.words)}
        if self.words and self.words[0].startswith("-"):
            hint = f"behind '--' stands the whole command: ./{self.path.name} {self.words[0]} …"
            raise ConfigError(f"{self.words[0][:80]!r} is no program", hint=hint)
        return found | {"files": [path], "command": list(self.words) or [f"./{self.path.name}"]}


@dataclass(frozen=True)
class System:
    """A disk with a system, at ``path``: its ``unit`` that is the application, and the number of its root partition."""

    path: Path
    unit: str
    partition: int | None = None


@dataclass(frozen=True)
class Single:
    """What is asked for. Empty values are left to the image, and to the manifest's defaults; sizes as in a manifest.
    It is a ``container``, a program of ``files``, or a unit of a ``system``."""

    container: str
    owner: Path
    name: str = ""
    memory: str = ""
    percent: int | None = None
    system_memory: str = ""
    vcpus: int | None = None
    publish: Sequence[int] = ()
    command: str = ""
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    results: Sequence[str] = ()
    restarts: int | None = None
    files: Files | None = None
    system: System | None = None

    def manifest(self) -> dict[str, Any]:
        """Its manifest; paths relative to the present folder are made absolute. Raises ``ConfigError``."""
        name = self.name or self.default_name()
        application = {
            "name": name,
            **self._form(),
            "memory": self.memory,
            "percent": self.percent,
            "publish": list(self.publish),
            "environment": dict(self.environment),
            "results": list(self.results),
            "restarts": self.restarts,
        }
        top = {"name": name, "owner": str(self.owner.resolve()), "vcpus": self.vcpus}
        system: dict[str, Any] = {"system": {"memory": self.system_memory}} if self.system_memory else {}
        if self.system:
            vm = {"disk": str(self.system.path.resolve()), "partition": self.system.partition}
            system["vm"] = _given(vm)
        return _given(top) | system | {"applications": [_given(application)]}

    def default_name(self) -> str:
        """The domain's, by what it is made of."""
        place = self.files or self.system
        return name_of(str(place.path.resolve()) if place else self.container)

    def _form(self) -> dict[str, Any]:
        if self.files:
            return self.files.entries()
        if self.system:
            return {"unit": self.system.unit}
        container = reference(self.container, Path.cwd())
        return {"container": container, "command": self.command, "user": self.user}


@contextmanager
def manifest_file(single: Single) -> Iterator[Path]:
    """The manifest's file, as long as it is needed; no error inside tells a line of it. Raises ``ConfigError``."""
    with tempfile.TemporaryDirectory(prefix="vambrace-") as folder:
        path = Path(folder) / "manifest.yaml"
        path.write_text(yaml.safe_dump(single.manifest(), sort_keys=False, allow_unicode=True))
        try:
            yield path
        except ConfigError as error:
            if error.line is None:
                raise
            message = error.message.removeprefix(f"line {error.line}: ")
            raise ConfigError(message, hint=error.hint) from None


def name_of(container: str) -> str:
    """A domain's name from a reference to an image: ``docker://registry/team/web_server:1.2`` is ``web-server``."""
    rest = re.sub(r"^(docker://|[a-z-]+:)", "", container)
    last = re.split("[:@]", rest.rstrip("/").rpartition("/")[2].lower())[0]
    last = re.sub(r"\.(tar|tar\.gz|tgz|oci|jar|qcow2|raw|img)$", "", last)
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:32].strip("-") or "container"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}
