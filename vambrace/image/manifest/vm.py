"""The VM form: ``vm`` beside applications that are units of the disk's systemd (docs/vm-form.md).

vm: {disk: disk.qcow2}           # or vm: disk.qcow2; raw or qcow2
  partition: 2                   # unless it is found
  encrypt: {resource: …}         # for a key of the broker's
applications:
  - name: database
    unit: postgresql@17-main.service
    environment: {A: b}          # beside the unit's
    memory: 256M                 # and percent, results, publish, registers, restarts as of every application
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vambrace.errors import ConfigError
from vambrace.image.manifest.lines import CORRECT_PATH, Mapping
from vambrace.image.manifest.storage import read_encryption

MAX_PARTITION: Final = 1024


@dataclass(frozen=True)
class SystemWish:
    """The disk's file, the number of its root partition or None, and the broker's name for its key, or empty; the
    ``filesystem`` is known when the disk was read."""

    disk: Path
    partition: int | None = None
    key: str = ""
    filesystem: str = ""


def read_system(top: Mapping, folder: Path) -> SystemWish | None:
    """What the manifest says of a disk with a system. Raises ``ConfigError``."""
    if "vm" not in top:
        return None
    if top.is_text("vm"):
        with top.at("vm"):
            return SystemWish(_existing(folder / top.string("vm")))
    item = top.map("vm")
    assert item is not None
    with item.at("disk"):
        disk = _existing(folder / item.string("disk"))
    partition = item.number("partition", 1, MAX_PARTITION, 1) if "partition" in item else None
    wish = SystemWish(disk, partition, read_encryption(item))
    item.done()
    return wish


def check_alone(top: Mapping) -> None:
    """That nothing is asked for which the agent does not hand into a disk's system. Raises ``ConfigError``."""
    for key in ("devices", "volumes"):
        with top.at(key):
            if key in top:
                raise ConfigError(f"{key}: the system of a disk is given none", hint="take them out, or use containers")


def _existing(path: Path) -> Path:
    try:
        there = path.is_file()
    except OSError as error:
        raise ConfigError(f"{str(path)[:200]}: {error.strerror}", hint="correct the path") from None
    if not there:
        raise ConfigError(f"{path} is no file", hint=CORRECT_PATH)
    return path
