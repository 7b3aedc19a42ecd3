"""An application's files, copied as they will be in the image."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from vambrace.errors import ConfigError
from vambrace.image import python
from vambrace.image.manifest import Program


def stage(program: Program, target: Path) -> None:
    """Copy the application's files to the new folder ``target``: modes normal, no set-id bits, no attributes.

    Raises ``ConfigError``: more than its memory, a file that cannot be read, a device, a link that leads out.
    """
    target.mkdir()
    target.chmod(0o755)
    # Environments of the building machine's Python are of no use there, where a program has one of its own.
    left_out = {"__pycache__", *([python.FOLDER] if program.requirements else [])}
    for number, source in enumerate(program.files):
        _copy(source, target if program.merge and not number else target / source.name, source, left_out)
    size = sum(path.lstat().st_size for path in target.rglob("*") if path.is_file())
    if size > program.zone.memory:
        raise ConfigError(
            f"application {program.zone.name}: its files take {-(-size >> 20)} MiB, more than its memory",
            hint=f"give it more memory than {program.zone.memory >> 20} MiB",
        )


def _copy(source: Path, target: Path, top: Path, left_out: set[str]) -> None:
    mode = source.lstat().st_mode
    if stat.S_ISLNK(mode) and source != top:
        _copy_link(source, target, top)
    elif source.is_dir():
        target.mkdir(exist_ok=True)
        target.chmod(0o755)
        for entry in sorted(source.iterdir()):
            # Caches of the building machine's Python: of no use there, and different at each build.
            if entry.name not in left_out:
                _copy(entry, target / entry.name, top, left_out)
    elif source.is_file():
        if not os.access(source, os.R_OK):
            raise ConfigError(f"{source} cannot be read", hint="change its permissions")
        shutil.copyfile(source, target)
        target.chmod(0o755 if mode & 0o111 else 0o644)
    else:
        raise ConfigError(f"{source} is a device, socket or pipe", hint="an image holds files and folders only")


def _copy_link(source: Path, target: Path, top: Path) -> None:
    link = source.readlink()
    end = Path(os.path.normpath(source.parent / link))
    inside = not link.is_absolute() and end.is_relative_to(os.path.normpath(top)) and top.is_dir()
    if not inside or not source.resolve().is_relative_to(top.resolve()):
        raise ConfigError(f"{source} is a link that leads out of {top}", hint="put the file itself there")
    target.symlink_to(link)
