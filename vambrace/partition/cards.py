"""Network cards of domains: for each a tap device that is a port of one of the host's bridges.

A tap lives as long as a descriptor of it is open. The VMM has the only one that lasts: when the process ends, in
whatever way, the card is gone.

What a guest may do is bounded by its port. It has one address, which the bridge does not learn but is told: packets
from another one are dropped there (a locked port), nobody else's packets move it (a sticky entry), and packets to
addresses that the bridge does not know are not sent to it. Where the bridge takes part in a spanning tree, a guest that
poses as another bridge has its port closed (a guarded port). Isolated ports do not reach each other, only others.
Sources: Documentation/networking/tuntap.rst, bridge.rst; include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.partition.rtnetlink import GUARD, ISOLATED, LEARNING, LOCKED, UNICAST_FLOOD, rtnetlink

TUN, VHOST = "net/tun", "vhost-net"
DEVICES, SYSFS, MODULES = Path("/dev"), Path("/sys/class/net"), Path("/sys/module")
#: The kernel puts a number after it.
PREFIX = "vmbnet"
#: Packets that wait in the host's kernel until the guest takes them; more are dropped.
QUEUE = 256
#: Host memory of one card: that many packets of the largest size that segmentation offload gives, and their heads.
CARD_MEMORY = QUEUE * (72 << 10)

_SET_INTERFACE, _SET_HEADER, _SET_LITTLE_ENDIAN, _SET_OFFLOAD = 0x400454CA, 0x400454D8, 0x400454DC, 0x400454D0
_TAP, _NO_INFORMATION, _HEADER = 0x0002, 0x1000, 0x4000
_HEADER_SIZE = 12


@dataclass(frozen=True)
class Network:
    """A bridge of the host under the name that domains know it by. It has at most ``cards`` of them at a time;
    ``isolated``: these do not reach each other, only what else is at the bridge."""

    name: str
    bridge: str
    isolated: bool = True
    cards: int = 16


@dataclass(frozen=True)
class OpenCard:
    """Descriptors of a tap and of vhost-net, the guest's address, the bridge's largest packet, the tap's name."""

    tap: int
    vhost: int
    mac: bytes
    mtu: int
    interface: str

    def close(self) -> None:
        """Close what is this process's of it."""
        for descriptor in (self.tap, self.vhost):
            os.close(descriptor)


def check(network: Network, sysfs: Path = SYSFS, modules: Path = MODULES) -> None:
    """Raises ``PartitionError``: the host has no such bridge, or copies packets in a way that pins guest memory."""
    if not (sysfs / network.bridge / "bridge").is_dir():
        raise PartitionError(
            f"network {network.name}: this host has no bridge {network.bridge}", hint="make it, or correct the settings"
        )
    option = modules / "vhost_net/parameters/experimental_zcopytx"
    if option.exists() and option.read_text().strip() != "0":
        # Pages that it sends from stay where they are: neither counted by the window nor to be encrypted.
        raise PartitionError("vhost_net sends without a copy", hint="load it without experimental_zcopytx")


def new_address() -> bytes:
    """A random one of those that nobody assigns: six bytes, locally administered."""
    first, *others = secrets.token_bytes(6)
    return bytes([first & 0xFC | 2, *others])


def open_card(network: Network, mac: bytes, devices: Path = DEVICES) -> OpenCard:
    """A card at the network's bridge, up, for the guest's address ``mac``; ``devices`` is /dev. Needs root.

    Raises ``PartitionError``; then there is no such card.
    """
    check(network)
    opened: list[int] = []
    try:
        tap = os.open(devices / TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        opened.append(tap)
        interface = _attach(tap)
        vhost = os.open(devices / VHOST, os.O_RDWR | os.O_CLOEXEC)
        opened.append(vhost)
        mtu = int((SYSFS / network.bridge / "mtu").read_text())
        _connect(interface, network, mac, mtu)
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        what = error.filename or f"network {network.name}"
        raise PartitionError(f"{what}: no card: {error.strerror}", hint="load tun, bridge and vhost_net") from error
    return OpenCard(tap, vhost, mac, mtu, interface)


def _attach(tap: int) -> str:
    """Make the descriptor's interface; returns its name."""
    request = struct.pack("16sH22x", f"{PREFIX}%d".encode(), _TAP | _NO_INFORMATION | _HEADER)
    answer = fcntl.ioctl(tap, _SET_INTERFACE, request)
    for setting, value in ((_SET_HEADER, _HEADER_SIZE), (_SET_LITTLE_ENDIAN, 1)):
        fcntl.ioctl(tap, setting, struct.pack("=i", value))
    fcntl.ioctl(tap, _SET_OFFLOAD, 0)
    return answer[:16].split(b"\0")[0].decode()


def _connect(interface: str, network: Network, mac: bytes, mtu: int) -> None:
    index = socket.if_nametoindex(interface)
    # The host itself says nothing at this port.
    silence = Path("/proc/sys/net/ipv6/conf") / interface / "disable_ipv6"
    if silence.exists():
        silence.write_text("1")
    with rtnetlink() as kernel:
        # The tap's own address is no one's. A bridge that was given none takes the least of its ports': not this one.
        kernel.set_link(index, address=bytes([0xFE, *mac[1:]]), mtu=mtu, queue_length=QUEUE)
        kernel.set_link(index, master=socket.if_nametoindex(network.bridge))
        flags = {GUARD: True, LEARNING: False, UNICAST_FLOOD: False, LOCKED: True, ISOLATED: network.isolated}
        kernel.set_port(index, flags)
        kernel.pin_address(index, mac)
        kernel.set_link(index, up=True)


def leftovers(sysfs: Path = SYSFS) -> list[str]:
    """Taps that are there. At the daemon's start: of a VMM that has not ended yet."""
    return sorted(path.name for path in sysfs.glob(f"{PREFIX}*"))
