"""Disks to write to in a manifest: scratch space of an application, and volumes that outlive the Realm."""

from __future__ import annotations

from collections.abc import Sequence

from vambrace.checks import check_choice, check_name
from vambrace.errors import ConfigError
from vambrace.image.manifest.lines import Mapping
from vambrace.image.manifest.zones import parse_memory
from vambrace.release import check_resource
from vambrace.storage import Scratch, Storage, Volume, check_disk_size, check_mount


def read_scratch(item: Mapping, name: str) -> Scratch | None:
    """That of the application ``name``. Raises ``ConfigError``."""
    with item.at("scratch"):
        size = item.scalar("scratch", 0)
        return Scratch(name, parse_memory(size)) if size else None


def read_encryption(item: Mapping) -> str:
    """The broker's name for the key of the application's files; empty where they are not encrypted. Raises
    ``ConfigError``."""
    inner = item.map("encrypt")
    if inner is None:
        return ""
    with inner.at("resource"):
        resource = inner.string("resource")
        check_resource(resource, "encrypt")
    inner.done()
    return resource


def read_storage(top: Mapping, scratch: Sequence[Scratch], applications: Sequence[str]) -> Storage | None:
    """The ``scratch`` space of all applications, and the volumes. Raises ``ConfigError``."""
    volumes = [_volume(item, applications) for item in top.maps("volumes", required=False)]
    with top.at("volumes"):
        storage = Storage(tuple(scratch), tuple(volumes))
    return storage if storage.stores else None


def _volume(item: Mapping, applications: Sequence[str]) -> Volume:
    with item.at("name"):
        name = item.string("name")
        check_name(name, "volume")
    with item.at("application"):
        application = item.string("application")
        check_choice(application, applications, f"volume {name}: application")
    with item.at("size"):
        try:
            size = parse_memory(item.scalar("size"))
        except ConfigError:
            raise ConfigError(f"volume {name}: no size", hint='for example "512M" or "1G"') from None
        check_disk_size(size, f"volume {name}")
    with item.at("mount"):
        mount = item.string("mount")
        check_mount(mount, f"volume {name}")
    with item.at("key"):
        volume = Volume(name, application, size, mount, item.string("key"))
    item.done()
    return volume
