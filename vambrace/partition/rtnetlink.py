"""The few requests to the kernel's rtnetlink(7) that a bridge port needs.

The tool for it, iproute2, would bring Kerberos and more into the host's measured root; Busybox has none of these.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

Attribute = tuple[int, bytes]

_ERROR = 2
_REQUEST, _ACKNOWLEDGE, _CREATE, _REPLACE = 1, 4, 0x400, 0x100
_NEW_LINK, _SET_LINK, _NEW_NEIGHBOUR = 16, 19, 28
_NESTED = 0x8000
_UP = 1

# IFLA_* of include/uapi/linux/if_link.h
_ADDRESS, _MTU, _MASTER, _PORT, _QUEUE_LENGTH = 1, 4, 10, 12, 13
# IFLA_BRPORT_*
GUARD, LEARNING, UNICAST_FLOOD, ISOLATED, LOCKED = 5, 8, 9, 33, 39
# include/uapi/linux/neighbour.h: an entry that the bridge neither learnt nor may move to another port.
_LINK_ADDRESS = 2
_STATIC = 0x40
_MASTER_FLAG, _STICKY = 0x04, 0x40


class Rtnetlink:
    """A socket; every method raises ``OSError`` with the kernel's reason."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0

    def set_link(
        self,
        index: int,
        *,
        address: bytes | None = None,
        mtu: int | None = None,
        master: int | None = None,
        queue_length: int | None = None,
        up: bool = False,
    ) -> None:
        """Change an interface: what is None stays."""
        attributes: list[Attribute] = [
            (kind, struct.pack("=I", value))
            for kind, value in ((_MTU, mtu), (_MASTER, master), (_QUEUE_LENGTH, queue_length))
            if value is not None
        ]
        if address is not None:
            attributes.append((_ADDRESS, address))
        flags = _UP if up else 0
        header = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)
        self._ask(_NEW_LINK, 0, header, attributes)

    def set_port(self, index: int, settings: dict[int, bool]) -> None:
        """Change what a bridge does at its port ``index``."""
        nested = _pack([(kind, bytes([value])) for kind, value in settings.items()])
        header = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, index, 0, 0)
        self._ask(_SET_LINK, 0, header, [(_PORT | _NESTED, nested)])

    def pin_address(self, index: int, address: bytes) -> None:
        """Let the bridge have ``address`` at its port ``index`` for ever, and nowhere else."""
        header = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, _STATIC, _MASTER_FLAG | _STICKY, 0)
        self._ask(_NEW_NEIGHBOUR, _CREATE | _REPLACE, header, [(_LINK_ADDRESS, address)])

    def _ask(self, kind: int, flags: int, header: bytes, attributes: list[Attribute]) -> None:
        self._sequence += 1
        body = header + _pack(attributes)
        message = struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST | _ACKNOWLEDGE, self._sequence, 0) + body
        self._socket.send(message)
        answer = self._socket.recv(1 << 16)
        _, answered, _, sequence, _ = struct.unpack_from("=IHHII", answer)
        (code,) = struct.unpack_from("=i", answer, 16)
        if answered != _ERROR or sequence != self._sequence:
            raise OSError(0, "the kernel answered something else")
        if code:
            raise OSError(-code, os.strerror(-code))


@contextmanager
def rtnetlink() -> Iterator[Rtnetlink]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        connection.bind((0, 0))
        yield Rtnetlink(connection)


def _pack(attributes: list[Attribute]) -> bytes:
    """Netlink attributes, each aligned to 4 bytes."""
    return b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in attributes
    )
