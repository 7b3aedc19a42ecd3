"""The network card (virtio 1.2, section 5.1), served by the kernel's vhost-net and a tap device.

Packets pass through the host kernel only, never through this process. It opens neither device: it gets both open.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

from vambrace.errors import KvmError
from vambrace.record import Record
from vambrace.virtio import vhost
from vambrace.virtio.device import VERSION_1, KernelDevice, Ring
from vambrace.virtio.memory import GuestFault, GuestMemory
from vambrace.virtio.queue import Queue
from vambrace.virtio.vhost import Vhost, all_set_up

LEAST_MTU, MOST_MTU = 68, 65535

_SET_BACKEND = 0x4008AF30  # of vhost-net: the tap that a ring's packets come from or go to, or -1
_SET_OFFLOAD = 0x400454D0  # TUNSETOFFLOAD (include/uapi/linux/if_tun.h)
#: All that these devices are asked (vambrace/jail/kinds.py).
TAP_REQUESTS = (_SET_OFFLOAD,)
REQUESTS = (*vhost.REQUESTS, _SET_BACKEND)

_CSUM, _GUEST_CSUM, _MTU, _MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_GUEST_TSO4, _GUEST_TSO6, _HOST_TSO4, _HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
_MERGED_BUFFERS, _INDIRECT, _EVENT_INDEX = 1 << 15, 1 << 28, 1 << 29

#: Work that the tap does or leaves to the guest: the two feature words have nothing in common but this table.
_OFFLOADS = {_GUEST_CSUM: 1, _GUEST_TSO4: 2, _GUEST_TSO6: 4}
_TAP_FEATURES = _CSUM | _HOST_TSO4 | _HOST_TSO6 | _GUEST_CSUM | _GUEST_TSO4 | _GUEST_TSO6
#: What of the kernel's features a driver may have. No other one was looked at, whatever a later kernel offers.
_VHOST_FEATURES = VERSION_1 | _MERGED_BUFFERS | _INDIRECT | _EVENT_INDEX

_RECEIVED, _SENT = _RINGS = (0, 1)


class Card(Record):
    """The host's side of one card: open descriptors of its tap and of vhost-net, its address, its largest packet.

    The tap puts the 12 byte header of virtio 1 before each packet.
    """

    tap: int
    vhost: int
    mac: bytes
    mtu: int


class Net(KernelDevice):
    """The descriptors of ``card`` belong to it from here on. Raises ``KvmError``: they are not what they should be."""

    kind = 1
    queues = 2

    def __init__(self, card: Card) -> None:
        self._tap = card.tap
        self._vhost = Vhost(card.vhost, "network card")
        self._attached = False
        try:
            # A group address is nobody's own.
            if len(card.mac) != 6 or card.mac[0] & 1 or not LEAST_MTU <= card.mtu <= MOST_MTU:
                raise KvmError("network card: its address or its packet size is none")
            self._vhost.take()
            offered = self._vhost.offered() & _VHOST_FEATURES
            if not offered & VERSION_1:
                raise KvmError("network card: this kernel's vhost-net does not speak virtio 1")
        except KvmError:
            self.close()
            raise
        # The fields between have features of their own, which are not offered.
        self.config = struct.pack("<6s4xH", card.mac, card.mtu)
        self.features = offered | _TAP_FEATURES | _MAC | _MTU
        self._features = VERSION_1

    def close(self) -> None:
        self._vhost.close()
        os.close(self._tap)

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        self._features = features

    def process(self, queues: Sequence[Queue | None], index: int) -> None:
        pass  # both queues are the kernel's

    def connect(
        self, memory: GuestMemory, rings: Sequence[Ring | None], kicks: Sequence[int], interrupt: int
    ) -> None:
        try:
            self._offload(sum(tap for bit, tap in _OFFLOADS.items() if self._features & bit))
            features = self._features & _VHOST_FEATURES
            self._vhost.connect(memory, features, all_set_up(rings, "network"), kicks, interrupt)
            self._attached = True  # of two, the first may be
            for index in _RINGS:
                self._attach(index, self._tap)
        except KvmError as error:
            # What the kernel refuses here came from the guest.
            raise GuestFault(error.message) from error

    def reset(self) -> None:
        if self._attached:
            self._attached = False
            for index in _RINGS:
                self._attach(index, -1)
            self._offload(0)

    def _attach(self, index: int, tap: int) -> None:
        doing = "let packets through" if tap >= 0 else "stop packets"
        self._vhost.call(_SET_BACKEND, struct.pack("<Ii", index, tap), doing)

    def _offload(self, flags: int) -> None:
        try:
            fcntl.ioctl(self._tap, _SET_OFFLOAD, flags)
        except OSError as error:
            raise KvmError(f"network card: its tap cannot leave such work to the guest: {error.strerror}") from error
