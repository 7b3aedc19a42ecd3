"""The container form: ``container: IMAGE`` in the place of an application's ``files`` (docs/containers.md).

  - name: database
    container: postgres.tar      # a file or folder, or oci:, oci-archive:, docker-archive:, docker://
    command: [postgres]          # these five: as the image says, unless given
    entrypoint: [/entry.sh]
    environment: {A: b}          # beside the image's
    user: postgres               # or user:group, names of the image's or numbers
    directory: /var/lib/postgresql
    capabilities: {drop: [all], add: [CHOWN]}
    health: false                # without the image's health check
    stop_seconds: 10             # from the stop signal to the end
    processes: 512               # that there may be, and files that each may have open
    files: 4096
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vambrace.checks import check_choice
from vambrace.container import CAPABILITIES, DEFAULT_CAPABILITIES, MORE_CAPABILITIES, Container
from vambrace.image.containers.source import reference
from vambrace.image.manifest.lines import Mapping

_ALL: Final = "all"


@dataclass(frozen=True)
class Wish:
    """What a manifest wants of an image. None stands for what the image says; an ``entrypoint`` of the manifest's
    leaves the image's command out, as Docker does. ``container`` has what is no matter of the image."""

    reference: str
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...] | None
    user: str | None
    directory: str | None
    health: bool
    container: Container


def read_wish(item: Mapping, folder: Path, command: tuple[str, ...] | None) -> Wish:
    """That of the application ``item``, whose ``command`` was read. Raises ``ConfigError``."""
    with item.at("container"):
        source = reference(item.string("container"), folder)
    entrypoint = item.strings("entrypoint") if "entrypoint" in item else None
    user = item.string("user", "") if "user" in item else None
    directory = item.string("directory") if "directory" in item else None
    with item.at("stop_seconds"):
        container = Container(
            disk="image",  # until it is built
            capabilities=_capabilities(item),
            stop_seconds=item.integer("stop_seconds", Container.stop_seconds),
            processes=item.integer("processes", Container.processes),
            files=item.integer("files", Container.files),
        )
    return Wish(source, entrypoint, command, user, directory, item.boolean("health", True), container)


def _capabilities(item: Mapping) -> tuple[str, ...]:
    wanted = item.map("capabilities")
    if wanted is None:
        return DEFAULT_CAPABILITIES
    found = set(DEFAULT_CAPABILITIES)
    for key, known in (("drop", (_ALL, *CAPABILITIES)), ("add", (*DEFAULT_CAPABILITIES, *MORE_CAPABILITIES))):
        with wanted.at(key):
            for word in wanted.strings(key):
                name = _ALL if word.lower() == _ALL else word.upper().removeprefix("CAP_")
                check_choice(name, known, f"capabilities: {key}")
                if key == "add":
                    found.add(name)
                else:
                    found -= set(CAPABILITIES) if name == _ALL else {name}
    wanted.done()
    return tuple(sorted(found))
