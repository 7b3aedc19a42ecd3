"""The open files that a domain consists of, and how they reach its VMM (docs/architecture.md, section 5).

A VMM opens nothing by a path. Whoever may (the daemon) opens what a domain needs, and sends the descriptors along with
the request ``load``, which names them in the same order. Both sides take names and kinds from here.

What a domain of a certain configuration must get, no more and no less, is what ``expected`` names: ``KIND`` alone, or
``KIND:WHICH`` where it may have several. The kinds are those of ``vambrace/jail/kinds.py``, where one more is added.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from vambrace.config import DomainConfig
from vambrace.errors import UsageError
from vambrace.jail.kinds import KINDS

#: More than any domain has; the kernel's own bound for one packet is 253.
MOST = 96
#: What a network card has: a tap that is attached, and the device that serves it.
CARD = ("net", "vhost-net")


def expected(config: DomainConfig) -> tuple[str, ...]:
    """The names of all that a domain of this configuration gets."""
    cards = (f"{kind}:{number}" for number in range(len(config.networks)) for kind in CARD)
    disks = (f"{'volume' if disk.plain else 'disk'}:{disk.name}" for disk in config.disks)
    stores = (f"volume:{store.name}" for store in config.stores)
    agent = ("vhost-vsock",) if config.kind.attested else ()
    devices = (name for device in config.devices for name in device_names(device.name))
    return ("config", "kernel", "initrd", *disks, *stores, "kvm", "userfaultfd", *agent, *cards, *devices)


def device_names(device: str) -> tuple[str, str, str]:
    """The names of a PCI device's descriptors: its own, its group's, its container's."""
    return f"vfio:{device}", f"vfio-group:{device}", f"vfio-container:{device}"


class Descriptors:
    """Open files, by name once they are named. A context manager: whatever nobody has taken by then is closed."""

    def __init__(self, files: Sequence[int] = ()) -> None:
        """Takes over ``files``."""
        self._unnamed = list(files)
        self._named: dict[str, int] = {}

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def name(self, names: Sequence[str]) -> None:
        """Name them, in order. Raises ``UsageError``: not as many, a name is unknown or given twice, a file is not of
        its kind."""
        if len(self._unnamed) != len(names):
            raise UsageError(f"descriptors: {len(names)} are named, {len(self._unnamed)} were sent")
        if len(set(names)) != len(names):
            raise UsageError("descriptors: a name is given twice")
        for name, file in zip(names, self._unnamed, strict=True):
            _check(name, file)
        self._named = dict(zip(names, self._unnamed, strict=True))
        self._unnamed.clear()

    def require(self, names: Sequence[str]) -> None:
        """Raises ``UsageError`` unless exactly these are there."""
        if missing := [name for name in names if name not in self._named]:
            raise UsageError(f"descriptor {missing[0]} is missing")
        if extra := [name for name in self._named if name not in names]:
            raise UsageError(f"descriptor {extra[0]} is not this domain's")

    def take(self, name: str) -> int:
        """The descriptor of this name, the caller's from now on. Raises ``UsageError``: it is not there."""
        if name not in self._named:
            raise UsageError(f"descriptor {name} is missing")
        return self._named.pop(name)

    @contextmanager
    def use(self, name: str) -> Iterator[int]:
        """The descriptor of this name, closed in the end. Raises as ``take``."""
        file = self.take(name)
        try:
            yield file
        finally:
            os.close(file)

    def close(self) -> None:
        left = [*self._unnamed, *self._named.values()]
        self._unnamed.clear()
        self._named.clear()
        for file in left:
            os.close(file)


def _check(name: str, file: int) -> None:
    kind = KINDS.get(name.partition(":")[0])
    if kind is None:
        raise UsageError(f"descriptor {name[:40]!r} is of no known kind")
    mode = os.fstat(file).st_mode
    if kind.handed:
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            raise UsageError(f"descriptor {name} is not a device")
        return
    right: Callable[[int], bool] = stat.S_ISCHR if kind.device else stat.S_ISREG
    if not right(mode):
        raise UsageError(f"descriptor {name} is not a {'device' if kind.device else 'file'}")
    wanted = os.O_RDWR if kind.writable else os.O_RDONLY
    if not kind.device and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != wanted:
        raise UsageError(f"descriptor {name} is open for {'reading only' if kind.writable else 'more than reading'}")
