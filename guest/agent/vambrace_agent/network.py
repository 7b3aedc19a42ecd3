"""Network cards: found in the order of the configuration, given their addresses, switched on.

What is on a network is nobody's to trust, so a card with an address of its own takes none that a router offers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from vambrace_agent import AgentError
from vambrace_agent.settings import Network
from vambrace_agent.system import put

CLASS = "/sys/class/net"
CONF = "/proc/sys/net"


def bring_up(
    networks: Sequence[Network], folder: str = CLASS, conf: str = CONF, ip: Callable[..., None] | None = None
) -> None:
    """Raises ``AgentError``: fewer or more cards than networks, or the kernel refuses an address."""
    ip = ip or run
    cards = interfaces(folder)
    if len(cards) != len(networks):
        raise AgentError(f"{len(cards)} network cards, but {len(networks)} networks")
    for card, network in zip(cards, networks, strict=True):
        if network.address:
            for setting in ("ipv6/conf/{}/accept_ra", "ipv4/conf/{}/accept_redirects", "ipv6/conf/{}/accept_redirects"):
                with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                    put(f"{conf}/{setting.format(card)}", "0")
            ip("address", "add", network.address, "dev", card)
        ip("link", "set", card, "up")
        if network.gateway:
            ip("route", "add", "default", "via", network.gateway, "dev", card)


def interfaces(folder: str = CLASS) -> list[str]:
    """The virtio cards, in the order of their addresses in the machine: that of the measured configuration."""
    found = []
    for name in os.listdir(folder):
        # …/a006000.virtio_mmio/virtio6: the bus is numbered as drivers come, the address is fixed.
        transport = os.path.realpath(f"{folder}/{name}/device").split("/")[-2:][0]
        address, _, kind = transport.partition(".")
        if kind == "virtio_mmio":
            found.append((int(address, 16), name))
    return [name for _, name in sorted(found)]


def run(*words: str) -> None:
    """Busybox's ``ip``. Raises ``AgentError``."""
    code = os.spawnvp(os.P_WAIT, "busybox", ["busybox", "ip", *words])
    if code:
        raise AgentError(f"ip {' '.join(words)}: exit code {code}")
