"""Opens for a VMM what its domain consists of: the VMM itself has no path to anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.config import DomainConfig
from vambrace.errors import DomainError
from vambrace.host.store import StoredImage
from vambrace.jail.kinds import KINDS
from vambrace.machine.descriptors import CARD, device_names, expected
from vambrace.partition import handover
from vambrace.partition.cards import Network, new_address, open_card


@dataclass(frozen=True)
class Opened:
    """``descriptors`` by name, and of each network card what the VMM must know."""

    descriptors: dict[str, int]
    cards: list[dict[str, Any]]


@contextmanager
def opened(
    image: StoredImage,
    config: DomainConfig,
    disks: Mapping[str, Path],
    networks: Sequence[Network],
    devices: Path,
    handed: Sequence[handover.Opened] = (),
) -> Iterator[Opened]:
    """What the domain consists of, closed in the end; ``disks`` are files by name, ``devices`` is /dev, and
    ``networks`` those of its cards. Its PCI devices are ``handed`` over, in order, and stay whose they are.

    Raises ``DomainError``, ``PartitionError``: something cannot be opened.
    """
    files = {"config": image.config, "kernel": image.kernel, "initrd": image.initrd}
    files |= {f"{kind}:{name}": path for name, path in disks.items() for kind in ("disk", "volume")}
    with ExitStack() as stack:
        found: dict[str, int] = {}
        for device, one in zip(config.devices, handed, strict=True):
            found |= zip(device_names(device.name), (one.device, one.group, one.container), strict=True)
        cards = []
        for number, network in enumerate(networks):
            card = open_card(network, new_address(), devices)
            stack.callback(card.close)
            found |= {f"{kind}:{number}": file for kind, file in zip(CARD, (card.tap, card.vhost), strict=True)}
            cards.append({"mac": card.mac.hex(), "mtu": card.mtu})
        for name in expected(config):
            if name not in found:
                found[name] = _open(name, files.get(name), devices)
                stack.callback(os.close, found[name])
        yield Opened(found, cards)


def _open(name: str, file: Path | None, devices: Path) -> int:
    kind = KINDS[name.partition(":")[0]]
    path = devices / kind.device if kind.device else file
    if path is None:
        raise DomainError(f"the stored image has no {name}", hint="delete it from the host, and send it again")
    try:
        return os.open(path, os.O_CLOEXEC | (os.O_RDWR if kind.device or kind.writable else os.O_RDONLY))
    except OSError as error:
        raise DomainError(f"{path}: {error.strerror}", hint=kind.hint or None) from error
