"""Opens for a VMM what its domain consists of: the VMM itself has no path to anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vambrace.config import DomainConfig
from vambrace.errors import DomainError
from vambrace.host.store import StoredImage
from vambrace.machine.descriptors import KINDS, expected


@contextmanager
def opened(image: StoredImage, config: DomainConfig, devices: Path) -> Iterator[Mapping[str, int]]:
    """The domain's descriptors by name, closed in the end; ``devices`` is /dev.

    Raises ``DomainError``: one cannot be opened.
    """
    files = {"config": image.config, "kernel": image.kernel, "initrd": image.initrd}
    files |= {f"disk:{disk.name}": path for disk, path in zip(config.disks, image.disks, strict=False)}
    with ExitStack() as stack:
        found = {}
        for name in expected(config):
            found[name] = _open(name, files.get(name), devices)
            stack.callback(os.close, found[name])
        yield found


def _open(name: str, file: Path | None, devices: Path) -> int:
    kind = KINDS[name.partition(":")[0]]
    path = devices / kind.device if kind.device else file
    if path is None:
        raise DomainError(f"the stored image has no {name}", hint="delete it from the host, and send it again")
    try:
        return os.open(path, os.O_CLOEXEC | (os.O_RDWR if kind.device else os.O_RDONLY))
    except OSError as error:
        raise DomainError(f"{path}: {error.strerror}", hint=kind.hint or None) from error
